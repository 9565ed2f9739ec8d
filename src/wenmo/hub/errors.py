"""What can go wrong between a hub and the disk, said once for both hubs: what, where, and how to mend it."""

from __future__ import annotations

from wenmo.errors import WenmoError, say
from wenmo.hub.repository import RemoteFile, Repository, error_for

_ENDPOINT = {"hf": "HF_ENDPOINT", "ms": "MODELSCOPE_ENDPOINT"}
_TOKEN = {"hf": "HF_TOKEN", "ms": "MODELSCOPE_API_TOKEN"}


def not_found(repository: Repository, what: str = "") -> WenmoError:
    """`what`: the file or the revision that is not there; without it, the repository."""
    token = _TOKEN[repository.hub]
    if what:
        return error_for(repository.kind)(
            say(f"the repository has no {what}", f"仓库中没有 {what}"), where=str(repository),
            mend=say("look at its files and revisions on the hub's page", "请在模型库页面上查看其文件与版本"))
    return error_for(repository.kind)(
        say("no such repository, or it is private", "没有这个仓库，或它是私有的"), where=str(repository),
        mend=say(f"check org/name; for a private one set {token}", f"检查“组织/名称”；私有仓库请设置 {token}"))


def refused(repository: Repository) -> WenmoError:
    token = _TOKEN[repository.hub]
    return error_for(repository.kind)(
        say("the hub does not let you have it (gated or private)", "模型库拒绝访问（受限或私有）"),
        where=str(repository),
        mend=say(f"accept its terms on the hub's page, then set {token}",
                 f"请先在模型库页面同意其条款，再设置 {token}"))


def unreachable(repository: Repository, reason: str, offline: bool) -> WenmoError:
    """Nothing answers, and it was not fetched before."""
    endpoint = _ENDPOINT[repository.hub]
    if offline:
        return error_for(repository.kind)(
            say("this was not fetched before, and HF_HUB_OFFLINE forbids the network",
                "此前未下载过，而 HF_HUB_OFFLINE 禁止联网"),
            where=str(repository), mend=say("unset HF_HUB_OFFLINE once, or copy the files here and give their path",
                                            "取消一次 HF_HUB_OFFLINE，或把文件复制到本机并给出路径"))
    return error_for(repository.kind)(
        say(f"the hub cannot be reached: {reason}", f"无法连接模型库：{reason}"), where=str(repository),
        mend=say(f"check the network, or set {endpoint} to a mirror; what was fetched once is read without it",
                 f"检查网络，或把 {endpoint} 设为镜像；已下载过的内容无需联网"))


def not_a_hub(repository: Repository, endpoint: str) -> WenmoError:
    return error_for(repository.kind)(
        say("what answers there is no hub", "该地址应答的不是模型库"), where=f"{repository} ({endpoint})",
        mend=say(f"correct {_ENDPOINT[repository.hub]}", f"请改正 {_ENDPOINT[repository.hub]}"))


def broken(repository: Repository, file: RemoteFile, reason: str = "") -> WenmoError:
    """The transfer did not come to its end."""
    return error_for(repository.kind)(
        say(f"the download was cut{reason and f': {reason}'}", f"下载中断{reason and f'：{reason}'}"),
        where=f"{repository}/{file.path}",
        mend=say("run the same command again: what is complete is kept", "重新运行同一命令：已完成的部分会保留"))


def damaged(repository: Repository, file: RemoteFile) -> WenmoError:
    return error_for(repository.kind)(
        say("what arrived has another hash than the hub lists; it was thrown away",
            "收到的内容与模型库所列哈希不符，已丢弃"),
        where=f"{repository}/{file.path}",
        mend=say(f"run it again; if it stays so, use another {_ENDPOINT[repository.hub]}",
                 f"请重试；若仍如此，请更换 {_ENDPOINT[repository.hub]}"))
