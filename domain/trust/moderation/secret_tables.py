"""What secrets are told by: prefixes of issuers, words that name a secret, and pairs of letters."""

from __future__ import annotations

# What issuers put before their keys, so that scanners can tell them: prefix, and how much follows at least.
PREFIXES: dict[str, int] = {
    # forges, registries, builds
    "ghp_": 36, "gho_": 36, "ghu_": 36, "ghs_": 36, "ghr_": 36, "github_pat_": 40, "glpat-": 20,
    "gldt-": 20,
    "glrt-": 20, "glrtr-": 20, "glcbt-": 16, "glptt-": 30, "glft-": 20, "glimt-": 20, "glagent-": 30,
    "gloas-": 30,
    "glsoat-": 20, "glffct-": 20, "_gitlab_session=": 32, "GR1348941": 20, "npm_": 36, "pypi-AgE": 30,
    "rubygems_": 40, "CLOJARS_": 40, "dckr_pat_": 20, "dckr_oat_": 20, "packagist_": 30, "oy2": 43,
    "ATATT3": 60,
    "ATCTT3": 60, "ATBB": 28, "bkua_": 30, "CCIPAT_": 30, "AKCp": 60, "cmVmd": 50, "HRKU-": 30, "nfp_":
    30,
    "sgp_": 20, "squ_": 30, "sqp_": 30, "sqa_": 30, "pul-": 30, "atlasv1.": 40, "sntrys_": 30,
    "sntryu_": 30, "NRAK-": 20, "NRII-": 20, "NRJS-": 15, "NRBR-": 15, "glc_": 30, "glsa_": 30, "PMAK-":
    30,
    "rdme_": 40, "ico-": 30, "pnu_": 30, "sm_pat_": 16, "sm_aat_": 16, "sm_sat_": 16, "tk-us-": 40,
    "figd_": 30,
    "lin_api_": 30, "ntn_": 30, "secret_": 40, "fio-u-": 50, "tfp_": 40, "dp.pt.": 30, "dp.st.": 30,
    "dp.ct.": 30,
    "dp.sa.": 30, "dp.scim.": 30, "dp.audit.": 30, "s-s4t2ud-": 40, "s-s4t2af-": 40, "vercel_": 20,
    "rnd_": 20,
    # clouds and networks
    "AIza": 35, "ya29.": 30, "GOCSPX-": 24, "LTAI": 16, "AKID": 28, "AKLT": 20, "ABSK": 60,
    "bedrock-api-key-": 20,
    "dop_v1_": 50, "doo_v1_": 50, "dor_v1_": 50, "sha256~": 40, "hvs.": 20, "hvb.": 60, "hvr.": 60,
    "fo1_": 40,
    "fm1a_": 60, "fm1r_": 60, "fm2_": 60, "v1.0-": 100, "dapi": 32, "dt0c01.": 60, "dt0s": 60,
    "pscale_tkn_": 30,
    "pscale_oauth_": 30, "pscale_pw_": 30, "tskey-": 20, "dnkey-": 60, "AQVN": 35, "t1.": 80, "YC": 38,
    "4b1d": 38,
    "ops_eyJ": 60, "sbp_": 40, "CCDB1_": 30, "napi_": 40, "AGE-SECRET-KEY-1": 50, "sb_secret_": 20,
    "zpka_": 30,
    # models and data
    "sk-ant-": 30, "sk-proj-": 30, "sk-svcacct-": 30, "sk-admin-": 30, "sk-or-v1-": 40, "sk-": 32,
    "hf_": 30,
    "api_org_": 30, "gsk_": 40, "xai-": 40, "pplx-": 40, "r8_": 30, "lsv2_": 40, "CFPAT-": 40, "p8e-":
    30,
    # money
    "sk_live_": 10, "sk_test_": 10, "sk_prod_": 10, "rk_live_": 10, "rk_test_": 10, "rk_prod_": 10,
    "whsec_": 30,
    "sq0atp-": 20, "sq0csp-": 40, "EAAA": 26, "shpat_": 30, "shpca_": 30, "shppa_": 30, "shpss_": 30,
    "EZAK": 50,
    "EZTK": 50, "duffel_live_": 40, "duffel_test_": 40, "FLWSECK": 12, "FLWPUBK": 12, "shippo_live_":
    40,
    "shippo_test_": 40, "access_token$production$": 40, "APP_USR-": 40,
    # messages
    "xoxb-": 14, "xoxp-": 14, "xoxa-": 10, "xoxr-": 10, "xoxs-": 10, "xoxe-": 40, "xoxe.xoxb-": 40,
    "xoxe.xoxp-": 40,
    "xapp-": 12, "SG.": 60, "xkeysib-": 60, "xsmtpsib-": 60, "pubkey-": 32, "key-": 32, "EAAM": 60,
    "EAAC": 60,
    "EAAG": 60, "patch_": 99,
}  # fmt: skip

# Names that are given to secrets.
WORDS = (
    r"secret|token|passw(?:or)?d|passwd|pwd|passphrase|passcode|credential|creds|api[_.\- ]?key|"
    r"access[_.\- ]?key|account[_.\- ]?key|auth[_.\- ]?key|private[_.\- ]?key|secret[_.\- ]?key|"
    r"signing[_.\- ]?key|client[_.\- ]?key|encryption[_.\- ]?key|license[_.\- ]?key|master[_.\- ]?key|"
    r"app[_.\- ]?key|consumer[_.\- ]?key|user[_.\- ]?key|insert[_.\- ]?key|service[_.\- ]?key|"
    r"access[_.\- ]?id|client[_.\- ]?id|bearer|authorization|\bauth\b|oauth|apikey|hmac|webhook"
)

# Whose keys have no shape of their own: the name of the issuer beside a value drawn by chance.
ISSUERS = (
    r"adafruit|adobe|airtable|algolia|alibaba|asana|atlassian|confluence|jira|artifactory|jfrog|"
    r"beamer|bitbucket|bittrex|cloudflare|codecov|coinbase|confluent|contentful|databricks|datadog|"
    r"digitalocean|discord|droneci|dropbox|duffel|dynatrace|easypost|etsy|facebook|fastly|finicity|"
    r"finnhub|flickr|freshbooks|freemius|gitter|gocardless|grafana|harness|hashicorp|heroku|hubspot|"
    r"intercom|kraken|kucoin|launchdarkly|linear|linked[-_]?in|lob|looker|mailchimp|mailgun|mapbox|"
    r"mattermost|meraki|message[-_]?bird|monday|netlify|new[-_]?relic|notion|nytimes|"
    r"new[-_]?york[-_]?times|okta|openweather|paypal|plaid|postmark|rapidapi|segment|sendbird|"
    r"sendgrid|sentry|sidekiq|snyk|sonar|splunk|square(?:space)?|private[-_]?ai|sumo(?:[-_]?logic)?|"
    r"telegr|travis|trello|twilio|twitch|twitter|yandex|zendesk|bundle_enterprise|bundle_gems|cohere|"
    r"vault|consul|nuget|octopus|pagerduty|shodan|virustotal|etherscan|infura|mistral|deepseek|wandb"
)

# Pairs of letters that words are made of; four of five pairs in English are among them, one of four in chance.
PAIRS = frozenset(
    (
        "th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha as ou io le ve co me "
        "de hi ri ro ic ne ea ra ce li ch ll be ma si om ur ca el ta la ns di fo ho pe ec pr no ct us ac ot "
        "il tr ly nc et ut ss so rs un lo wa ge ie wh ee wi em ad ol rt po we na ul ni ts mo ow pa im mi ai "
        "sh ir su id os iv ia am fi ci vi pl ig tu ev ld ry mp fe bl ab gh ty op wo sa ay ex ke fr oo av ag "
        "if ap gr od bo sp rd do uc bu ei ov by rm ep tt oc fa ef cu rn sc gi da yo cr cl du ga qu ue ff ba "
        "ey ls va um pp ua up lu go ht ru ug ds lt pi rc rr eg au ck ew mu br bi pt ak pu ui rg ib tl ny ki "
        "rk ys ob mm fu ph og ms ye ud mb ip ub oi rl gu dr hr cc tw ft wn nu af hu nn eo vo rv nf xp gn sm "
        "fl iz ok nl my gl aw ju oa eq sy sl ps jo lf nv je nk kn gs dy hy ze ks xt bs ik dd rp sk xi oe oy "
        "ws lv dl rf eu dg wr xa yi nm eb"
    ).split()
)
