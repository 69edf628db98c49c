"""What people's SQL may be made of: words, written down once, and nothing that is not among them.

The lists were drawn from the catalogue of ClickHouse 26.9 and shortened by hand; they are never completed from the
catalogue at run time, so that a function of tomorrow is refused until somebody has looked at it. Left out on
purpose are all that reads files, the network, dictionaries, other tables, the environment or the server; all that
takes the name of a function or of a type from data; serialised aggregate states; and functions whose single call can
outlast every limit.
"""

from __future__ import annotations

from collections.abc import Mapping

DATABASE = "bi"
DATABASE_NAMES = frozenset({"", "bi", "default", "__default__"})
# Read as they are: they hold nothing but numbers.
PLAIN_SYSTEM_TABLES = frozenset({"one", "numbers"})

TABLE_FUNCTIONS = frozenset({"numbers", "zeros", "values", "generate_series", "generateSeries"})

# --------------------------------------------------------------------------- functions

_OPERATORS = """
    plus minus multiply divide intDiv intDivOrZero intDivOrNull modulo moduloOrZero moduloOrNull positiveModulo negate
    gcd lcm divideDecimal multiplyDecimal divideOrNull isFinite isInfinite isNaN ifNotFinite
    equals notEquals less greater lessOrEquals greaterOrEquals isDistinctFrom isNotDistinctFrom
    in notIn globalIn globalNotIn exists and or xor
    bitAnd bitOr bitXor bitNot bitShiftLeft bitShiftRight bitTest bitTestAll bitTestAny bitCount
    multiIf caseWithExpression clamp assumeNotNull isNotNull isZeroOrNull toNullable transform
    lambda tuple tupleElement tupleConcat tupleNames untuple getSubcolumn grouping
    identity materialize ignore toTypeName toColumnTypeName isDecimalOverflow countDigits byteSize bar
    formatReadableSize formatReadableDecimalSize formatReadableQuantity formatReadableTimeDelta
"""
_MATHS = """
    acosh asinh atanh cbrt cosh sinh e erf erfc exp2 exp10 lgamma tgamma log1p intExp2 intExp10 sigmoid
    trunc roundBankers roundDown roundToExp2
    L1Distance L2Distance LinfDistance cosineDistance dotProduct
    financialNetPresentValue financialInternalRateOfReturn seriesOutliersDetectTukey
"""
_TEXTS = """
    empty notEmpty lengthUTF8 lowerUTF8 upperUTF8 initcapUTF8 reverseUTF8 leftUTF8 rightUTF8 substringUTF8
    leftPad rightPad leftPadUTF8 rightPadUTF8 substringIndex substringIndexUTF8 trimBoth trimLeft trimRight trim ltrim
    rtrim startsWith endsWith startsWithUTF8 endsWithUTF8 startsWithCaseInsensitive endsWithCaseInsensitive
    concatWithSeparator appendTrailingCharIfAbsent isValidUTF8 toValidUTF8 isValidASCII base64Encode base64Decode
    tryBase64Decode base64URLEncode base64URLDecode base58Encode base58Decode basename firstLine
    format printf replaceAll replaceOne replaceRegexpAll replaceRegexpOne regexpQuoteMeta translate translateUTF8
    like notLike ilike notILike match notMatch extract extractAll extractGroups extractAllGroupsVertical
    extractAllGroupsHorizontal countMatches position positionUTF8 positionCaseInsensitive positionCaseInsensitiveUTF8
    countSubstringsCaseInsensitive hasToken hasTokenOrNull multiSearchAny multiSearchAnyCaseInsensitive
    multiSearchFirstIndex multiSearchFirstPosition splitByChar splitByString splitByRegexp splitByWhitespace
    splitByNonAlpha alphaTokens arrayStringConcat bitPositionsToArray bitmaskToArray
    cutFragment cutQueryString cutURLParameter cutWWW decodeURLComponent encodeURLComponent domain domainWithoutWWW
    extractURLParameter extractURLParameters fragment path pathFull protocol queryString topLevelDomain
    MD5 SHA1 SHA224 SHA256 SHA384 SHA512 cityHash64 farmHash64 halfMD5 intHash32 intHash64 javaHash jumpConsistentHash
    metroHash64 murmurHash2_32 murmurHash2_64 murmurHash3_32 murmurHash3_64 murmurHash3_128 sipHash64 sipHash128
    xxHash32 xxHash64 xxh3
    JSONExtract JSONExtractArrayRaw JSONExtractBool JSONExtractFloat JSONExtractInt JSONExtractKeys
    JSONExtractKeysAndValuesRaw JSONExtractRaw JSONExtractString JSONExtractUInt JSONHas JSONKey JSONLength JSONType
    JSON_EXISTS JSON_QUERY JSON_VALUE isValidJSON simpleJSONExtractBool simpleJSONExtractFloat simpleJSONExtractInt
    simpleJSONExtractRaw simpleJSONExtractString simpleJSONExtractUInt simpleJSONHas toJSONString
    IPv4NumToString IPv4StringToNum IPv4StringToNumOrNull IPv6NumToString IPv6StringToNum isIPv4String isIPv6String
    toIPv4 toIPv6 toIPv4OrNull toIPv6OrNull UUIDNumToString UUIDStringToNum UUIDv7ToDateTime generateUUIDv4
"""
_ARRAYS = """
    array arrayAll arrayAvg arrayCompact arrayConcat arrayCount arrayCumSum arrayCumSumNonNegative arrayDifference
    arrayDistinct arrayDotProduct arrayElement arrayElementOrNull arrayEnumerate arrayEnumerateDense arrayEnumerateUniq
    arrayExcept arrayExists arrayFill arrayFilter arrayFirst arrayFirstIndex arrayFirstOrNull arrayFlatten
    arrayIntersect arrayJaccardIndex arrayJoin arrayLast arrayLastIndex arrayLastOrNull arrayMap arrayMax arrayMin
    arrayPopBack arrayPopFront arrayProduct arrayPushBack arrayPushFront arrayResize arrayReverse arrayReverseFill
    arrayReverseSort arrayReverseSplit arrayRotateLeft arrayRotateRight arrayShiftLeft arrayShiftRight arraySlice
    arraySort arraySplit arraySum arrayUniq arrayWithConstant arrayZip arrayZipUnaligned countEqual has hasAll hasAny
    hasSubstr indexOf range replicate emptyArrayString emptyArrayInt64 emptyArrayUInt64 emptyArrayFloat64
    map mapAdd mapApply mapConcat mapContains mapContainsKey mapContainsKeyLike mapContainsValue mapExists
    mapExtractKeyLike mapFilter mapFromArrays mapKeys mapReverseSort mapSort mapSubtract mapUpdate mapValues
    tupleDivide tupleDivideByNumber tupleMinus tupleMultiply tupleMultiplyByNumber tupleNegate tuplePlus
    tupleToNameValuePairs tupleHammingDistance
"""
_TIMES = """
    toYear toQuarter toMonth toDayOfYear toDayOfMonth toDayOfWeek toHour toMinute toSecond toMillisecond toMicrosecond
    toUnixTimestamp toStartOfYear toStartOfISOYear toStartOfQuarter toStartOfMonth toLastDayOfMonth toMonday
    toStartOfWeek toLastDayOfWeek toStartOfDay toStartOfHour toStartOfMinute toStartOfSecond toStartOfMillisecond
    toStartOfFiveMinutes toStartOfFiveMinute toStartOfTenMinutes toStartOfFifteenMinutes toStartOfInterval
    toRelativeYearNum toRelativeQuarterNum toRelativeMonthNum toRelativeWeekNum toRelativeDayNum toRelativeHourNum
    toRelativeMinuteNum toRelativeSecondNum toISOYear toISOWeek toWeek toYearWeek toDaysInMonth toYYYYMM toYYYYMMDD
    toYYYYMMDDhhmmss addYears addQuarters addMonths addWeeks addDays addHours addMinutes addSeconds addMilliseconds
    addInterval subtractYears subtractQuarters subtractMonths subtractWeeks subtractDays subtractHours subtractMinutes
    subtractSeconds subtractInterval date_diff dateTrunc timestampDiff timestamp_diff formatDateTime
    formatDateTimeInJodaSyntax fromUnixTimestamp toTimezone toTimeZone timezoneOf timeZoneOf timezoneOffset
    timeZoneOffset serverTimezone serverTimeZone timeSlot timeSlots yesterday
    fromUnixTimestamp64Milli fromUnixTimestamp64Micro fromUnixTimestamp64Nano toUnixTimestamp64Milli
    toUnixTimestamp64Micro toUnixTimestamp64Nano tumble tumbleStart tumbleEnd hop hopStart hopEnd timeZone
    toIntervalNanosecond toIntervalMicrosecond toIntervalMillisecond toIntervalSecond toIntervalMinute toIntervalHour
    toIntervalDay toIntervalWeek toIntervalMonth toIntervalQuarter toIntervalYear
"""
_TYPED = """
    Int8 Int16 Int32 Int64 Int128 Int256 UInt8 UInt16 UInt32 UInt64 UInt128 UInt256 Float32 Float64 Decimal32 Decimal64
    Decimal128 Decimal256 Date Date32 DateTime DateTime64 UUID
"""
_CASTS = """
    CAST accurateCast accurateCastOrNull toBool toString toFixedString toStringCutToZero toLowCardinality toDateTime32
    parseDateTime parseDateTimeOrNull parseDateTimeOrZero parseDateTimeBestEffort parseDateTimeBestEffortOrNull
    parseDateTimeBestEffortOrZero parseDateTime64BestEffort parseDateTime64BestEffortOrNull
    reinterpretAsInt64 reinterpretAsUInt64 reinterpretAsString
"""
# What a client asks when it connects; those of the server's own identity are answered by us (see ANSWERED).
_HANDSHAKE = "revision currentDatabase currentUser displayName hostName queryID"

_ANY_CASE = """
    abs ceil ceiling floor round truncate sqrt exp log log2 log10 ln pow power sin cos tan asin acos atan atan2 tanh
    hypot pi degrees radians sign factorial mod max2 min2
    if ifnull nullif coalesce isnull greatest least not firstnondefault cast
    length char_length character_length octet_length lower upper lcase ucase initcap reverse left right
    substring substr mid repeat space lpad rpad ltrim rtrim trim concat concat_ws ascii char hex unhex bin unbin
    replace position locate instr countsubstrings crc32 soundex overlay regexp_replace regexp_extract
    now now64 today curdate current_date current_timestamp localtimestamp utctimestamp utc_timestamp date timestamp
    year quarter month day dayofmonth dayofweek dayofyear hour minute second millisecond week yearweek
    adddate subdate datediff date_diff datename monthname date_trunc date_format last_day makedate makedatetime
    makedatetime64 from_unixtime to_unixtime age timezone str_to_date
    todecimalstring rand rand64 version database schema current_database user current_user session_user
"""


def _words(*texts: str) -> frozenset[str]:
    return frozenset(word for text in texts for word in text.split())


FUNCTIONS = _words(_OPERATORS, _MATHS, _TEXTS, _ARRAYS, _TIMES, _CASTS, _HANDSHAKE) | frozenset(
    f"to{kind}{ending}" for kind in _TYPED.split() for ending in ("", "OrZero", "OrNull", "OrDefault")
)
FUNCTIONS_ANY_CASE = _words(_ANY_CASE)

AGGREGATES = _words("""
    any anyLast anyHeavy argMax argMin avgWeighted covarPop covarSamp corrStable covarPopStable covarSampStable
    stddevPop stddevSamp varPop varSamp stddevPopStable stddevSampStable varPopStable varSampStable skewPop skewSamp
    kurtPop kurtSamp entropy deltaSum deltaSumTimestamp sumWithOverflow sumKahan sumCount sumMap minMap maxMap
    groupArray groupArrayLast groupArrayMovingAvg groupArrayMovingSum groupArraySample groupArraySorted groupUniqArray
    groupBitAnd groupBitOr groupBitXor groupConcat histogram
    quantile quantiles quantileExact quantilesExact quantileExactLow quantileExactHigh quantileExactInclusive
    quantileExactExclusive quantileExactWeighted quantileTDigest quantilesTDigest quantileTiming quantilesTiming
    quantileBFloat16 quantileDeterministic median medianExact medianTDigest medianTiming
    simpleLinearRegression singleValueOrNull topK topKWeighted uniq uniqCombined uniqCombined64 uniqExact uniqHLL12
    uniqUpTo exponentialMovingAverage exponentialTimeDecayedAvg retention windowFunnel
    sequenceMatch sequenceCount intervalLengthSum maxIntersections
    lagInFrame leadInFrame nonNegativeDerivative denseRank percentRank cume_dist
""")
AGGREGATES_ANY_CASE = _words("""
    count sum avg min max corr any_value first_value last_value nth_value row_number rank dense_rank percent_rank ntile
    lag lead std stddev stddev_pop stddev_samp var_pop var_samp covar_pop covar_samp max_by min_by array_agg
    group_concat string_agg
""")
COMBINATORS = ("If", "Array", "Distinct", "OrDefault", "OrNull", "ForEach", "ArgMin", "ArgMax", "Map")
COMBINED_MAX = 3

# Functions that take a table on their right; a name there is a reference to a table.
IN_FUNCTIONS = frozenset({"in", "notin", "globalin", "globalnotin"})
# Functions whose first argument may be another function: with more than one argument it must be a lambda, written out.
# The engine takes a bare name there for a function, and would call it without our having seen a call.
HIGHER_ORDER = frozenset(
    word.lower()
    for word in """
    arrayAll arrayAvg arrayCompact arrayCount arrayCumSum arrayCumSumNonNegative arrayDifference arrayExists arrayFill
    arrayFilter arrayFirst arrayFirstIndex arrayFirstOrNull arrayLast arrayLastIndex arrayLastOrNull arrayMap arrayMax
    arrayMin arrayProduct arrayReverseFill arrayReverseSort arrayReverseSplit arraySort arraySplit arraySum
    mapApply mapExists mapFilter mapReverseSort mapSort
    """.split()
)
# Functions that take the name of a type: at which place it must stand, as a literal.
TYPE_ARGUMENT = {"cast": 1, "accuratecast": 1, "accuratecastornull": 1, "jsonextract": -1}
# Functions whose answer would tell of the server or of the account behind us.
ANSWERED: Mapping[str, str] = {
    "currentdatabase": DATABASE,
    "current_database": DATABASE,
    "database": DATABASE,
    "schema": DATABASE,
    "currentuser": "reader",
    "current_user": "reader",
    "session_user": "reader",
    "user": "reader",
    "displayname": "soma-ledger",
    "hostname": "soma-ledger",
    "queryid": "",
}

# Functions that are permitted only as calls we can look into. As a bare name the engine might take one for a function,
# or let an alias stand for it; the same holds for every function of its catalogue that is not permitted.
CALLED_ONLY = (
    IN_FUNCTIONS
    | frozenset(TYPE_ARGUMENT)
    | frozenset(
        {"exists", "format", "lambda", "currentdatabase", "currentuser", "displayname", "hostname", "queryid"}
    )
)
# Not offered, and harmless: names that columns have.
HARMLESS_NAMES = frozenset({"tokens", "port", "digits", "stem", "bin", "partitionid", "svg", "nested"})

# --------------------------------------------------------------------------- types

TYPES = _words("""
    int8 int16 int32 int64 int128 int256 uint8 uint16 uint32 uint64 uint128 uint256 float32 float64 bfloat16 float
    double decimal decimal32 decimal64 decimal128 decimal256 numeric dec bool boolean string fixedstring text char
    varchar date date32 datetime datetime32 datetime64 time time64 timestamp uuid ipv4 ipv6 enum enum8 enum16 nullable
    lowcardinality array tuple map tinyint smallint int integer bigint signed unsigned real nothing
    intervalsecond intervalminute intervalhour intervalday intervalweek intervalmonth intervalquarter intervalyear
""")

# --------------------------------------------------------------------------- settings

SWITCH = frozenset({"0", "1"})
# A setting with the words it may have, or the bounds it is clamped to; the upper bound None comes from our settings.
SETTINGS: Mapping[str, frozenset[str] | tuple[int, int | None]] = {
    "max_execution_time": (1, None),
    "max_result_rows": (1, None),
    "max_result_bytes": (1, None),
    "max_memory_usage": (1_000_000, None),
    "max_threads": (1, 4),
    "max_block_size": (1, 100_000),
    "result_overflow_mode": frozenset({"throw", "break"}),
    "group_by_use_nulls": SWITCH,
    "join_use_nulls": SWITCH,
    "union_default_mode": frozenset({"", "ALL", "DISTINCT"}),
    "date_time_output_format": frozenset({"simple", "iso", "unix_timestamp"}),
    "extremes": SWITCH,
    "format_csv_delimiter": frozenset({",", ";", "|", "\t"}),
    "output_format_csv_crlf_end_of_line": SWITCH,
    "output_format_tsv_crlf_end_of_line": SWITCH,
    "output_format_json_quote_64bit_integers": SWITCH,
    "output_format_json_quote_64bit_floats": SWITCH,
    "output_format_json_quote_decimals": SWITCH,
    "output_format_json_quote_denormals": SWITCH,
    "output_format_json_named_tuples_as_objects": SWITCH,
    "output_format_json_escape_forward_slashes": SWITCH,
    "output_format_json_array_of_rows": SWITCH,
    "output_format_decimal_trailing_zeros": SWITCH,
    "output_format_arrow_string_as_string": SWITCH,
    "output_format_arrow_low_cardinality_as_dictionary": SWITCH,
    "output_format_arrow_compression_method": frozenset({"none", "lz4_frame", "zstd"}),
    "output_format_parquet_string_as_string": SWITCH,
    "output_format_parquet_compression_method": frozenset({"none", "snappy", "lz4", "zstd", "gzip"}),
    "output_format_pretty_color": frozenset({"0", "1", "auto"}),
    "output_format_pretty_max_rows": (1, 1_000_000),
    "output_format_native_encode_types_in_binary_format": frozenset({"0"}),
}
TIMEZONE_SETTING = "session_timezone"
# Words of the transport and of clients that have no meaning here, or which we set ourselves.
IGNORED_SETTINGS = _words("""
    session_id session_timeout session_check quota_key query_id wait_end_of_query buffer_size decompress
    send_progress_in_http_headers http_headers_progress_interval_ms http_response_buffer_size log_queries
    cancel_http_readonly_queries_on_client_close http_zlib_compression_level enable_http_compression readonly
    http_write_exception_in_output_format http_make_head_request add_http_cors_header client_protocol_version
    log_comment cast_string_to_dynamic_use_inference input_format_native_allow_types_conversion
    output_format_native_write_json_as_string output_format_native_use_flattened_dynamic_and_json_serialization
    allow_experimental_analyzer enable_analyzer date_time_input_format
""")

# --------------------------------------------------------------------------- formats

FORMATS: Mapping[str, str] = {
    name.lower(): name
    for name in """
    TabSeparated TSV TabSeparatedRaw TSVRaw TabSeparatedWithNames TSVWithNames TabSeparatedWithNamesAndTypes
    TSVWithNamesAndTypes CSV CSVWithNames CSVWithNamesAndTypes JSON JSONCompact JSONStrings JSONCompactStrings
    JSONColumns JSONCompactColumns JSONColumnsWithMetadata JSONObjectEachRow JSONEachRow JSONStringsEachRow
    JSONCompactEachRow JSONCompactEachRowWithNames JSONCompactEachRowWithNamesAndTypes JSONCompactStringsEachRow
    JSONCompactStringsEachRowWithNames JSONCompactStringsEachRowWithNamesAndTypes NDJSON JSONLines Native RowBinary
    RowBinaryWithNames RowBinaryWithNamesAndTypes Arrow ArrowStream Parquet Pretty PrettyCompact PrettyCompactMonoBlock
    PrettySpace PrettyNoEscapes PrettyCompactNoEscapes Vertical Values Markdown XML Null
    """.split()
}

# --------------------------------------------------------------------------- the system tables we show

# Told as SQL for the engine to parse; {settings}, {functions} and {formats} are filled with literals of our own lists.
SHOWN_SYSTEM_TABLES: Mapping[str, str] = {
    "settings": """
        SELECT name, value, changed, '' AS description, CAST(NULL, 'Nullable(String)') AS min,
               CAST(NULL, 'Nullable(String)') AS max, toUInt8(0) AS readonly, type, default, '' AS alias_for,
               is_obsolete, 'Production' AS tier
        FROM system.settings WHERE name IN ({settings})""",
    "databases": """
        SELECT 'bi' AS name, 'Atomic' AS engine, '' AS data_path, '' AS metadata_path,
               toUUID('00000000-0000-0000-0000-000000000000') AS uuid, 'Atomic' AS engine_full, '' AS comment
        FROM system.one""",
    "tables": """
        SELECT database, name, toUUID('00000000-0000-0000-0000-000000000000') AS uuid, 'View' AS engine,
               toUInt8(0) AS is_temporary, '' AS metadata_path, toDateTime(0, 'UTC') AS metadata_modification_time,
               '' AS create_table_query, 'View' AS engine_full, '' AS as_select, '' AS partition_key,
               '' AS sorting_key, '' AS primary_key, '' AS sampling_key, '' AS storage_policy,
               CAST(NULL, 'Nullable(UInt64)') AS total_rows, CAST(NULL, 'Nullable(UInt64)') AS total_bytes,
               CAST(NULL, 'Nullable(UInt64)') AS parts, comment, toUInt8(0) AS has_own_data, database AS schema,
               name AS table
        FROM system.tables WHERE database = 'bi'""",
    "columns": """
        SELECT database, table, name, type, position, default_kind, '' AS default_expression,
               toUInt64(0) AS data_compressed_bytes, toUInt64(0) AS data_uncompressed_bytes,
               toUInt64(0) AS marks_bytes, comment, toUInt8(0) AS is_in_partition_key,
               toUInt8(0) AS is_in_sorting_key, toUInt8(0) AS is_in_primary_key, toUInt8(0) AS is_in_sampling_key,
               '' AS compression_codec, character_octet_length, numeric_precision, numeric_precision_radix,
               numeric_scale, datetime_precision
        FROM system.columns WHERE database = 'bi'""",
    "functions": """
        SELECT name, is_aggregate, case_insensitive, alias_to, '' AS create_query, 'System' AS origin,
               '' AS description, '' AS syntax, '' AS arguments, '' AS returned_value, '' AS examples, categories
        FROM system.functions WHERE name IN ({functions}) OR lower(name) IN ({functions_any_case})""",
    "data_type_families": "SELECT name, case_insensitive, alias_to FROM system.data_type_families",
    "formats": """
        SELECT name, toUInt8(0) AS is_input, is_output, toUInt8(0) AS supports_parallel_parsing,
               supports_parallel_formatting
        FROM system.formats WHERE name IN ({formats})""",
    "table_functions": """
        SELECT arrayJoin(['numbers', 'zeros', 'values', 'generate_series', 'generateSeries']) AS name,
               '' AS description, toUInt8(1) AS allow_readonly
        FROM system.one""",
    "table_engines": "SELECT 'View' AS name FROM system.one",
    "time_zones": "SELECT time_zone FROM system.time_zones",
}
