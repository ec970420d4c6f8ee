"""What an error of an S3 server, or of the way to it, means to a user."""

from __future__ import annotations

from typing import Any, Final

from orchestrator.errors import StoreError, StoreFullError, StoreUnavailableError

_FULL: Final = frozenset({"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "StorageFull"})
_WRITES: Final = frozenset(
    {"put_object", "create_multipart_upload", "upload_part", "complete_multipart_upload"}
)
_KEYS: Final = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidClientTokenId", "AuthorizationHeaderMalformed"}
)
_EXPIRED: Final = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired"})
_SKEWED: Final = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_DENIED: Final = frozenset({"AccessDenied", "Forbidden", "403", "AllAccessDisabled", "AccountProblem"})
_BUSY: Final = frozenset(
    {"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded"}
    | {"RequestTimeout", "RequestTimeoutException", "ConditionalRequestConflict", "InternalError"}
)
_BROKEN: Final = frozenset(
    {
        "EndpointConnectionError",
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "ConnectionClosedError",
        "SSLError",
    }
    | {
        "HTTPClientError",
        "IncompleteReadError",
        "ResponseStreamingError",
        "ProtocolError",
        "ProxyConnectionError",
    }
    | {"ResponseParserError"}
)
"""botocore's and urllib3's errors of a connection that was not made, or broke off."""
_WHERE_KEYS_ARE: Final = "the environment (AWS_ACCESS_KEY_ID, …), ~/.aws/credentials or ?profile= in the URI"


def code_of(error: Exception) -> str:
    """The server's word for an answer, or its HTTP status; empty where there was no answer."""
    response: dict[str, Any] = getattr(error, "response", None) or {}
    code = str(response.get("Error", {}).get("Code", ""))
    return code or str(status_of(error) or "")


def status_of(error: Exception) -> int:
    """The HTTP status of an answer; 0 where there was none."""
    response: dict[str, Any] = getattr(error, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed a moment later."""
    code, status = code_of(error), status_of(error)
    if code in _FULL or status in (501, 507):
        return False
    if code or status:
        return status in (408, 409, 429) or status >= 500 or code in _BUSY
    return isinstance(error, OSError) or type(error).__name__ in _BROKEN


def is_refusal(error: Exception, operation: str) -> bool:
    """Whether the server is there and does not store: so SeaweedFS answers where its disk is full, though it
    may have another reason.
    """
    return operation in _WRITES and status_of(error) == 500


def translate(
    error: Exception, uri: str, bucket: str, endpoint: str, action: str, *, refused: bool = False
) -> StoreError:
    """The error of ours for one of botocore's, whose own messages are not repeated: they can quote what was
    signed. `refused`: the same request has failed again and again while others succeed.
    """
    code, name = code_of(error), type(error).__name__
    what = f"{uri}: cannot {action}"
    if code == "NoSuchBucket":
        return StoreUnavailableError(
            f"{what}: {endpoint} has no bucket {bucket}",
            remedy=f"Create it, for example with: aws s3 mb s3://{bucket}",
        )
    if code in _FULL or status_of(error) == 507:
        return StoreFullError(
            f"{what}: the server has no space left ({code})",
            remedy="Free space there, raise the quota, or let runs keep fewer checkpoints.",
        )
    if refused:
        return StoreFullError(
            f"{what}: {endpoint} answers, but refuses again and again to store it ({code}); "
            "probably it has no space left",
            remedy="Look into the server's log; free space there, or let runs keep fewer checkpoints.",
        )
    if code == "EntityTooLarge":
        return StoreError(
            f"{what}: it is larger than the server takes ({code})", remedy="Look for the server's limit."
        )
    if code in _SKEWED:
        return StoreUnavailableError(
            f"{what}: this machine's clock and the server's differ too much ({code})",
            remedy="Set the clock, for example with: timedatectl set-ntp true",
        )
    if code in _EXPIRED:
        return StoreUnavailableError(
            f"{what}: the credentials have expired ({code})", remedy=f"Renew them in {_WHERE_KEYS_ARE}."
        )
    if code in _KEYS:
        return StoreUnavailableError(
            f"{what}: {endpoint} does not accept the access key ({code})", remedy=f"Check {_WHERE_KEYS_ARE}."
        )
    if code in _DENIED:
        return StoreUnavailableError(
            f"{what}: access denied",
            remedy=f"Allow this access key to list, get, put and delete in bucket {bucket}.",
        )
    if name in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"):
        return StoreUnavailableError(
            f"{what}: there is no access key", remedy=f"Put one into {_WHERE_KEYS_ARE}."
        )
    if name == "ProfileNotFound":
        return StoreUnavailableError(f"{what}: {error}", remedy="Name a profile of ~/.aws/config.")
    if not code:
        return StoreUnavailableError(
            f"{what}: {endpoint} does not answer ({name})",
            remedy="Check the network, the endpoint in the URI, and that the server runs.",
        )
    return StoreUnavailableError(f"{what}: {endpoint} answered {code}", remedy="Look into the server's log.")
