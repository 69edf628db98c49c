# May a capsule from outside be taken in?
#
# Each requirement is met by what the input says, or it is a reason against.
package soma.import

requirements := {
	"asked_by_author": "neither an author nor an operator asks",
	"constitution_in_force": "the capsule names another constitution than the one in force",
	"no_rollback": "a newer version was imported before, and going back was not asked for",
	"not_barred": "the capsule is revoked or suspended here",
	"owners_named": "the manifest names no owner",
	"scopes_known": "a tool reaches further than any scope that is known",
	"threshold_met": "too few signatures of pinned keys count now",
}

met contains "asked_by_author" if {
	some role in input.who.roles
	role in {"owner", "provider", "operator"}
}

met contains "constitution_in_force" if {
	is_string(input.constitution.in_force)
	input.constitution.named == input.constitution.in_force
}

met contains "no_rollback" if input.standing.is_older == false

met contains "no_rollback" if input.standing.allow_older == true

met contains "not_barred" if {
	status := input.capsule.status
	is_string(status)
	not status in {"revoked", "suspended"}
}

met contains "owners_named" if {
	is_array(input.capsule.owners)
	count(input.capsule.owners) > 0
}

met contains "scopes_known" if {
	is_array(input.capsule.tools)
	every tool in input.capsule.tools {
		known(tool.access_scope)
	}
}

met contains "threshold_met" if {
	input.signatures.verified == true
	is_number(input.signatures.threshold)
	is_number(input.signatures.signed)
	input.signatures.threshold >= 1
	input.signatures.signed >= input.signatures.threshold
}

known(scope) if scope in {"read", "write", "admin"}

known(scope) if startswith(scope, "policy:")

obligations contains "mark_rollback" if input.standing.is_older == true

reasons contains concat(": ", [name, why]) if {
	some name, why in requirements
	not name in met
}

default decision := {"allow": false, "reasons": ["undecided: the policy came to no answer"], "obligations": []}

decision := {"allow": count(reasons) == 0, "reasons": sort(reasons), "obligations": sort(obligations)}
