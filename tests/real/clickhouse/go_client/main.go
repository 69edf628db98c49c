// The script of the client tests through clickhouse-go over HTTP, which is what Grafana's data source speaks.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"strconv"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

type step struct {
	Name     string            `json:"name"`
	SQL      string            `json:"sql"`
	Params   map[string]string `json:"params"`
	Settings map[string]int    `json:"settings"`
}

// Over HTTP this client shows the answer of the server as it is.
var shown = regexp.MustCompile(`Code: (\d+)\. DB::Exception`)

func main() {
	told, err := io.ReadAll(os.Stdin)
	if err != nil {
		panic(err)
	}
	var script struct {
		Address, Token, Database, Path string
		Steps                          []step
	}
	if err := json.Unmarshal(told, &script); err != nil {
		panic(err)
	}
	connection, err := clickhouse.Open(&clickhouse.Options{
		Addr:        []string{script.Address},
		Protocol:    clickhouse.HTTP,
		HttpUrlPath: script.Path,
		Auth:        clickhouse.Auth{Database: script.Database, Username: "grafana", Password: script.Token},
		Compression: &clickhouse.Compression{Method: clickhouse.CompressionGZIP},
	})
	if err != nil {
		panic(err)
	}
	if err := connection.Ping(context.Background()); err != nil {
		panic(err)
	}
	found := map[string]any{}
	for _, each := range script.Steps {
		rows, err := ask(connection, each)
		if err == nil {
			found[each.Name] = rows
		} else if code := shown.FindStringSubmatch(err.Error()); code != nil {
			number, _ := strconv.Atoi(code[1])
			found[each.Name] = map[string]any{"code": number}
		} else {
			found[each.Name] = map[string]any{"error": err.Error()}
		}
	}
	printed, err := json.Marshal(found)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(printed))
}

func ask(connection driver.Conn, each step) ([][]any, error) {
	options := []clickhouse.QueryOption{}
	if each.Params != nil {
		options = append(options, clickhouse.WithParameters(clickhouse.Parameters(each.Params)))
	}
	settings := clickhouse.Settings{}
	for name, value := range each.Settings {
		settings[name] = value
	}
	options = append(options, clickhouse.WithSettings(settings))
	rows, err := connection.Query(clickhouse.Context(context.Background(), options...), each.SQL)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	found := [][]any{}
	for rows.Next() {
		places := []any{}
		for _, column := range rows.ColumnTypes() {
			places = append(places, reflect.New(column.ScanType()).Interface())
		}
		if err := rows.Scan(places...); err != nil {
			return nil, err
		}
		row := []any{}
		for _, place := range places {
			row = append(row, reflect.ValueOf(place).Elem().Interface())
		}
		found = append(found, row)
	}
	return found, rows.Err()
}
