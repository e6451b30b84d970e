from ..contract import FormatContract, weights


class TestInt8Blockwise(FormatContract):
    FORMAT = "int8_blockwise"
    MIN_SNR = 39.0
    ACTIVATION_SNR = 39.0

    def test_the_input_scale_is_always_one(self) -> None:
        assert self.encode(weights("random"))["input_scale"].item() == 1.0
