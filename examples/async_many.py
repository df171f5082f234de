"""Several prompts at once: the root runs them in one batch. Start a root first.

python examples/async_many.py 127.0.0.1:7716 "The cat" "The dog" "A little girl"
"""

import asyncio
import sys

from hearth.client import AsyncClient, HearthError


async def tell(client: AsyncClient, prompt: str) -> str:
    try:
        return prompt + await client.generate_text(prompt, max_tokens=60, temperature=0.8, seed=1)
    except HearthError as error:
        return f"{prompt}: {error}"


async def main(address: str, prompts: list[str]) -> None:
    async with AsyncClient(address) as client:
        for story in asyncio.as_completed([tell(client, prompt) for prompt in prompts]):
            print(await story, end="\n\n")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
