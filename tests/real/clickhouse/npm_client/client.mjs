// The script of the client tests through @clickhouse/client.
import { createClient } from '@clickhouse/client'
import { readFileSync } from 'node:fs'

const script = JSON.parse(readFileSync(0, 'utf8'))
const client = createClient({
  url: script.url,
  username: 'reports',
  password: script.token,
  database: script.database,
  compression: { response: true },
})
const pinged = await client.ping()
if (!pinged.success) throw pinged.error

const found = {}
for (const step of script.steps) {
  try {
    const answer = await client.query({
      query: step.sql,
      format: 'JSONCompactEachRow',
      query_params: step.params ?? undefined,
      clickhouse_settings: step.settings ?? undefined,
    })
    const rows = []
    for await (const batch of answer.stream()) for (const row of batch) rows.push(row.json())
    found[step.name] = rows
  } catch (error) {
    found[step.name] = error.code ? { code: Number(error.code) } : { error: String(error) }
  }
}
const whole = await client.query({ query: 'SELECT count() AS n FROM entries', format: 'JSON' })
found.json_format = (await whole.json()).rows
await client.close()
console.log(JSON.stringify(found))
