# May a capsule be exported, or its archive be downloaded?
#
# Each requirement is met by what the input says, or it is a reason against. What the input does not say is not met,
# so an empty input is refused for every reason there is.
package soma.export

requirements := {
	"action_known": "the action is neither export nor download",
	"asked_by_author": "neither an author of the capsule's tenant nor an operator asks",
	"constitution_in_force": "the capsule names another constitution than the one in force",
	"fence_fresh": "the training lock is on, and its present fence was not shown",
	"not_barred": "the capsule is revoked or suspended",
	"owners_named": "the manifest names no owner",
	"scopes_known": "a tool reaches further than any scope that is known",
}

met contains "action_known" if input.action in {"export", "download"}

met contains "asked_by_author" if {
	input.who.tenant == input.capsule.tenant
	some role in input.who.roles
	role in {"owner", "provider"}
}

met contains "asked_by_author" if "operator" in input.who.roles

# What is published may be downloaded by everybody who could rent it.
met contains "asked_by_author" if {
	input.action == "download"
	input.capsule.status in {"published", "degraded"}
	some role in input.who.roles
	role in {"owner", "provider"}
}

# Reviewers and auditors look at what they judge.
met contains "asked_by_author" if {
	input.action == "download"
	some role in input.who.roles
	role in {"reviewer", "auditor"}
}

met contains "constitution_in_force" if {
	is_string(input.constitution.in_force)
	input.constitution.named == input.constitution.in_force
}

met contains "constitution_in_force" if {
	input.action == "download"
	input.capsule.status in {"published", "degraded", "withdrawn", "suspended", "revoked"}
}

met contains "fence_fresh" if input.training.on == false

met contains "fence_fresh" if input.training.fence_fresh == true

# A download changes nothing, so no fence guards it.
met contains "fence_fresh" if input.action == "download"

met contains "not_barred" if {
	status := input.capsule.status
	is_string(status)
	not status in {"revoked", "suspended"}
}

# In a dispute the platform must be able to look at what it has barred.
met contains "not_barred" if {
	input.action == "download"
	some role in input.who.roles
	role in {"operator", "auditor"}
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

known(scope) if scope in {"read", "write", "admin"}

known(scope) if startswith(scope, "policy:")

obligations contains "notify_owner" if {
	input.action == "download"
	input.who.tenant != input.capsule.tenant
}

reasons contains concat(": ", [name, why]) if {
	some name, why in requirements
	not name in met
}

default decision := {"allow": false, "reasons": ["undecided: the policy came to no answer"], "obligations": []}

decision := {"allow": count(reasons) == 0, "reasons": sort(reasons), "obligations": sort(obligations)}
