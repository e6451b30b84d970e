from ..contract import FormatContract


class TestFloat8Rowwise(FormatContract):
    FORMAT = "float8_e4m3fn_rowwise"
    MIN_SNR = 31.0
