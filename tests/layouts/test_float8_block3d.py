from ..contract import FormatContract


class TestFloat8Block3D(FormatContract):
    FORMAT = "float8_e4m3fn_block3d"
    MIN_SNR = 31.2
