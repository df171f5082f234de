"""Prints a story while the cluster makes it. Start a root first: hearth root --model demo

python examples/stream_story.py 127.0.0.1:7716 "Once upon a time"
"""

import sys

from hearth.client import Client, HearthError


def main(address: str, prompt: str) -> int:
    with Client(address) as client:
        try:
            print(prompt, end="")
            with client.generate(prompt, max_tokens=200, temperature=0.8, top_p=0.95) as story:
                for text in story:
                    print(text, end="", flush=True)
        except HearthError as error:
            print(f"\n{error}", file=sys.stderr)
            return 1
    usage = story.usage
    if usage is not None and usage.decode_seconds > 0:
        speed = (usage.completion_tokens - 1) / usage.decode_seconds
        print(f"\n\n{usage.completion_tokens} tokens, {speed:.1f} tokens/s ({story.finish_reason})")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
