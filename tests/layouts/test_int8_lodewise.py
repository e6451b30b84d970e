from ..contract import FormatContract


class TestInt8Lodewise(FormatContract):
    FORMAT = "int8_lodewise"
    MIN_SNR = 43.0
    ACTIVATION_SNR = 40.0
