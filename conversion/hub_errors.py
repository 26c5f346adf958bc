"""The Hub's and the network's errors, one sentence each."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # of its HTTP library, whichever that is
    LocalEntryNotFoundError,
)

AGAIN = "nothing is lost: run the same command again"


class HubRefusal(Exception):
    """Why nothing, or not everything, went to or came from the Hub, and what to do."""


@contextmanager
def one_sentence(repo_id: str) -> Iterator[None]:
    """Raise HubRefusal where the Hub or the network fails; `repo_id` is what was spoken of."""
    try:
        yield
    except (HTTPError, ConnectionError, TimeoutError, LocalEntryNotFoundError) as error:
        raise HubRefusal(sentence(error, repo_id)) from error
    except json.JSONDecodeError as error:  # a gateway's page of HTML
        raise HubRefusal(f"the Hub answered with something that is none of its answers; {AGAIN}.") from error
    except RuntimeError as error:  # the client says so of a file that could not be uploaded
        if not isinstance(error.__cause__, HTTPError | ConnectionError | TimeoutError):
            raise
        raise HubRefusal(sentence(error.__cause__, repo_id)) from error


def sentence(error: Exception, repo_id: str) -> str:
    """What happened and what to do."""
    if not isinstance(error, HfHubHTTPError):
        return f"the connection to the Hub broke ({type(error).__name__}); {AGAIN}."
    status = error.response.status_code
    sentences = {
        401: "the Hub does not accept the login (401); log in anew with `hf auth login`, or set HF_TOKEN",
        403: f"the login may not write to {repo_id} (403); use a token with write access to it",
        404: f"{repo_id} cannot be found (404), or the login may not see it; check the name and the token",
        409: f"{repo_id} was changed by somebody else at the same moment (409); {AGAIN}",
        412: f"{repo_id} was changed by somebody else during the upload (412); {AGAIN}",
    }
    return f"{sentences.get(status, f'the Hub answered with an error ({status}); {AGAIN}')}."
