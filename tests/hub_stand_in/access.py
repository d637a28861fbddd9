"""Who asks, and what they may do: tokens, namespaces, private and gated repositories."""

from dataclasses import dataclass

from tests.hub_stand_in.store import HubError, Repository, Store


WRITE, READ, EXPIRED, STRANGER = "hf_mayWriteEverything", "hf_mayReadEverything", "hf_onceUponATime", "hf_someoneElse"
USER, ORGANIZATION = "tester", "laboratory"


@dataclass(frozen=True)
class Account:
    """What a token stands for."""

    user: str
    role: str = "write"
    organizations: tuple[str, ...] = ()
    expired: bool = False

    def owns(self, namespace: str) -> bool:
        """Whether a namespace is theirs."""
        return namespace in (self.user, *self.organizations)

    def describe(self) -> dict[str, object]:
        """What `whoami` says."""
        token = {"displayName": f"{self.role} token", "role": self.role, "createdAt": "2026-01-01T00:00:00.000Z"}
        organizations = [{"type": "org", "name": name, "roleInOrg": "admin"} for name in self.organizations]
        return {
            "type": "user",
            "id": self.user,
            "name": self.user,
            "fullname": self.user,
            "email": f"{self.user}@example.org",
            "emailVerified": True,
            "isPro": False,
            "orgs": organizations,
            "auth": {"type": "access_token", "accessToken": token},
        }


ACCOUNTS = {
    WRITE: Account(USER, organizations=(ORGANIZATION,)),
    READ: Account(USER, role="read", organizations=(ORGANIZATION,)),
    EXPIRED: Account(USER, expired=True),
    STRANGER: Account("stranger"),
}


def account_of(accounts: dict[str, Account], authorization: str | None) -> Account | None:
    """Whose token a request carries; nobody's is fine, a wrong one is not."""
    if not authorization:
        return None
    account = accounts.get(authorization.removeprefix("Bearer "))
    if account is None:
        raise HubError(401, "Invalid credentials in Authorization header")
    if account.expired:
        raise HubError(401, "User Access Token is expired")
    return account


def known(account: Account | None) -> Account:
    """The account, where one is needed."""
    if account is None:
        raise HubError(401, "Invalid username or password.")
    return account


def readable(store: Store, account: Account | None, id: str, kind: str) -> Repository:
    """A repository that they can see; a private one of others looks like one that is not there."""
    repository = store.find(id, kind)
    if repository and (not repository.private or (account and account.owns(repository.owner))):
        return repository
    if account is None:
        raise HubError(401, "Invalid username or password.", "RepoNotFound")
    raise HubError(404, "Repository not found", "RepoNotFound")


def openable(store: Store, account: Account | None, id: str, kind: str) -> Repository:
    """A repository whose files they can have: of a gated one, only those that it lets in."""
    repository = readable(store, account, id, kind)
    if not repository.gated or (account and (account.owns(repository.owner) or account.user in repository.granted)):
        return repository
    said = f"Access to {kind} {id} is restricted."
    if account is None:
        raise HubError(401, f"{said} You must have access to it and be authenticated to access it.", "GatedRepo")
    raise HubError(403, f"{said} You are not in the authorized list. Visit its page to ask for access.", "GatedRepo")


def writer(account: Account | None, namespace: str, what: str) -> Account:
    """The account, where it may write to a namespace."""
    account = known(account)
    if not account.owns(namespace):
        raise HubError(403, f'You don\'t have the rights to {what} under the namespace "{namespace}"')
    if account.role != "write":
        raise HubError(403, f"Your token may only read: it cannot {what}.")
    return account


def writable(store: Store, account: Account | None, id: str, kind: str, what: str) -> Repository:
    """A repository that they may change."""
    repository = readable(store, account, id, kind)
    writer(account, repository.owner, what)
    return repository
