"""Every refusal the ledger can give, one class per stable code.

    LedgerError
    ├── InvalidError            400  a value of the caller's is malformed or out of range
    │   └── one class per field, with the code old clients know
    ├── UnauthorizedError       401
    ├── ForbiddenError          403
    ├── NotFoundError           404  unknown, or another tenant's
    ├── ConflictError           409  true now, may not be later
    ├── UnprocessableError      422  well formed, but it cannot be done
    └── UnavailableError        503  an outside system is away; the same request may be sent again

Three kinds of failure are never mixed: a refusal is a `LedgerError`; an outage is `UnavailableError`;
everything else is a bug and becomes a 500 with a trace id. Keyword facts go to the caller;
`internal` goes to the log only.

`families` holds what they have in common and the registry, and beside it stands one module per context. Everybody
imports from here, so that a class can move between them.
"""

from domain.errors.families import *
from domain.errors.feeds import *
from domain.errors.log import *
from domain.errors.market import *
from domain.errors.money import *
from domain.errors.persona import *
from domain.errors.rental import *
from domain.errors.requests import *
from domain.errors.system import *
from domain.errors.trust import *
from domain.errors.usage import *
