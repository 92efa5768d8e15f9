"""Errors in the form of OpenAI's API."""


class ApiError(Exception):
    """An error that a client gets: HTTP status, message, and the request field that is wrong."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict:
        """{"error": ...} as OpenAI's clients expect it."""
        kind = 'invalid_request_error' if self.status < 500 else 'server_error'
        return {
            'error': {
                'message': self.message, 'type': kind, 'param': self.param, 'code': self.code,
            }
        }  # fmt: skip


def invalid(param: str | None, message: str, code: str | None = None) -> ApiError:
    """The error of a request whose field `param` is wrong."""
    return ApiError(400, message, param, code)
