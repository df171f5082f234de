"""What a piece of a SentencePiece vocabulary is; GGUF files use the same numbers for any kind.

ModelProto.SentencePiece.Type of sentencepiece_model.proto.
"""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
