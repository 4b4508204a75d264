"""Decoding without transformers' wrapping gives what decoding with it gives."""

from __future__ import annotations

from random import Random

from transformers import AutoTokenizer, TokenizersBackend

from lightthinker.bundled import bundled_model_path
from lightthinker.engine.detokenizer import text_decoder
from lightthinker.testing.models import byte_tokenizer


class Shouting(TokenizersBackend):
    """Does something of its own when it decodes."""

    def _decode(self, *arguments, **options):
        return super()._decode(*arguments, **options).upper()


def test_as_the_tokenizer_decodes():
    draw = Random(0)
    for tokenizer in (byte_tokenizer(), AutoTokenizer.from_pretrained(bundled_model_path())):
        decode = text_decoder(tokenizer)
        for length in (1, 2, 7, 60):
            ids = [draw.randrange(len(tokenizer)) for _ in range(length)]
            assert decode(ids) == tokenizer.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )


def test_a_tokenizer_that_decodes_in_its_own_way_is_asked():
    plain = byte_tokenizer()
    shouting = Shouting(tokenizer_object=plain.backend_tokenizer)
    ids = plain("quiet words")["input_ids"]
    assert (
        text_decoder(shouting)(ids) == text_decoder(plain)(ids).upper() != text_decoder(plain)(ids)
    )
