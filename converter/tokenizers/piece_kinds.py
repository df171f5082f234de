"""Kinds of pieces in a SentencePiece vocabulary; GGUF uses the same numbers for all tokenizers.

ModelProto.SentencePiece.Type of sentencepiece_model.proto.
"""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
