# May a capsule be published, or a suspended one be reinstated?
#
# Each requirement is met by what the input says, or it is a reason against. The decision holds approvals, signatures
# and the constitution against the log by itself as well; this policy is asked besides, and either can refuse.
package soma.publish

requirements := {
	"admin_tools_named": "no approval names a tool that has the scope admin",
	"approved": "too few approvals were given",
	"asked_by_author": "neither an author of the capsule's tenant nor an operator asks",
	"constitution_in_force": "the capsule names another constitution than the one in force",
	"evaluation_passed": "the evaluation did not pass",
	"kill_switch_present": "the persona cannot be switched off",
	"not_barred": "the capsule is revoked, suspended or withdrawn",
	"owners_named": "the manifest names no owner",
	"price_stated": "the manifest states no price, or a negative one",
	"scan_passed": "the scan found what must not be published, and no approval overrides it",
	"scopes_known": "a tool reaches further than any scope that is known",
	"threshold_met": "too few signatures of pinned keys count now",
}

met contains "admin_tools_named" if {
	is_array(input.capsule.tools)
	every tool in input.capsule.tools {
		named_if_admin(tool)
	}
}

named_if_admin(tool) if tool.access_scope != "admin"

named_if_admin(tool) if tool.tool in input.approvals.tools_named

met contains "approved" if {
	is_number(input.approvals.required)
	is_number(input.approvals.given)
	input.approvals.required >= 1
	input.approvals.given >= input.approvals.required
}

# An override settles the votes, and is shown wherever the capsule is.
met contains "approved" if input.approvals.override == true

met contains "asked_by_author" if {
	input.who.tenant == input.capsule.tenant
	some role in input.who.roles
	role in {"owner", "provider"}
}

met contains "asked_by_author" if "operator" in input.who.roles

met contains "constitution_in_force" if {
	is_string(input.constitution.in_force)
	input.constitution.named == input.constitution.in_force
}

met contains "evaluation_passed" if input.evaluation.passed == true

met contains "kill_switch_present" if input.capsule.kill_switch_enabled == true

met contains "not_barred" if {
	status := input.capsule.status
	is_string(status)
	not status in {"revoked", "suspended", "withdrawn"}
}

# Reinstating publishes what was suspended, through every other requirement again.
met contains "not_barred" if {
	input.action == "reinstate"
	input.capsule.status == "suspended"
}

met contains "owners_named" if {
	is_array(input.capsule.owners)
	count(input.capsule.owners) > 0
}

met contains "price_stated" if {
	is_array(input.capsule.pricing)
	count(input.capsule.pricing) > 0
	every price in input.capsule.pricing {
		stated(price)
	}
}

stated(price) if {
	price.amount != ""
	price.currency != ""
	not startswith(price.amount, "-")
}

met contains "scan_passed" if input.scan.verdict in {"pass", "warn"}

met contains "scan_passed" if {
	input.scan.verdict == "block"
	input.approvals.override == true
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

obligations contains "show_override" if input.approvals.override == true

obligations contains "show_warnings" if input.scan.verdict in {"warn", "block"}

obligations contains "show_tools_that_write" if {
	some tool in input.capsule.tools
	tool.access_scope != "read"
}

reasons contains concat(": ", [name, why]) if {
	some name, why in requirements
	not name in met
}

default decision := {"allow": false, "reasons": ["undecided: the policy came to no answer"], "obligations": []}

decision := {"allow": count(reasons) == 0, "reasons": sort(reasons), "obligations": sort(obligations)}
