from ..contract import FormatContract


class TestFloat8Blockwise(FormatContract):
    FORMAT = "float8_e4m3fn_blockwise"
    MIN_SNR = 31.0

    def test_a_smaller_block_is_taken_where_the_asked_one_does_not_divide(self) -> None:
        fit = self.fmt.fit(self.fmt.bind(group_size=128), (192, 256))
        assert fit.spec is not None
        assert fit.spec.group_size == 64
        assert "128 does not divide (192, 256)" in fit.note


class TestFloat8Blockwise128(TestFloat8Blockwise):
    OPTIONS = {"group_size": 128}  # noqa: RUF012
