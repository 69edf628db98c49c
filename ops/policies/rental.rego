# May a persona be rented, subscribed to or bought, or a rental of it be activated?
#
# Each requirement is met by what the input says, or it is a reason against.
package soma.rental

requirements := {
	"action_known": "the action is none of rent, activate, subscribe and purchase",
	"asked_by_renter": "nobody who may rent asks",
	"constitution_in_force": "the capsule names another constitution than the one in force",
	"kill_switch_present": "the persona cannot be switched off",
	"offered_for_rent": "the manifest does not offer this way to pay",
	"published": "the capsule is not published",
	"scopes_known": "a tool reaches further than any scope that is known",
	"threshold_met": "too few signatures of pinned keys count now",
}

met contains "action_known" if input.action in {"rent", "activate", "subscribe", "purchase"}

met contains "asked_by_renter" if {
	some role in input.who.roles
	role in {"owner", "provider", "operator", "service"}
}

met contains "constitution_in_force" if {
	is_string(input.constitution.in_force)
	input.constitution.named == input.constitution.in_force
}

met contains "kill_switch_present" if input.capsule.kill_switch_enabled == true

met contains "offered_for_rent" if {
	some price in input.capsule.pricing
	price.model in ways(input.action)
}

met contains "published" if input.capsule.status in {"published", "degraded"}

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

ways("subscribe") := {"subscription"}

ways("purchase") := {"purchase"}

ways(action) := {"rental", "subscription"} if not action in {"subscribe", "purchase"}

known(scope) if scope in {"read", "write", "admin"}

known(scope) if startswith(scope, "policy:")

obligations contains "ask_consent_for_tools" if {
	some tool in input.capsule.tools
	tool.access_scope != "read"
}

obligations contains "tell_of_degradation" if input.capsule.status == "degraded"

reasons contains concat(": ", [name, why]) if {
	some name, why in requirements
	not name in met
}

default decision := {"allow": false, "reasons": ["undecided: the policy came to no answer"], "obligations": []}

decision := {"allow": count(reasons) == 0, "reasons": sort(reasons), "obligations": sort(obligations)}
