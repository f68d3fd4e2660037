import asyncio

from aiobotocore.session import get_session
from rounds import rounds

session = get_session()
loop = asyncio.new_event_loop()


async def arn():
    async with session.create_client("sts") as sts:
        return (await sts.get_caller_identity())["Arn"]


rounds(lambda: loop.run_until_complete(arn()))
