// SPDX-License-Identifier: MPL-2.0

package metrics

import (
	"encoding/json"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	rulesFile     = "../../../deploy/prometheus/apikeys.rules.yml"
	ruleTestsFile = "../../../deploy/prometheus/apikeys.rules.test.yml"
	dashboardFile = "../../../deploy/grafana/apikeys.json"
)

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// series are the names of the series that the registry has, with those labels
// values of code, type, health, trigger and result that it can have.
func series(t *testing.T) (names map[string]bool, values map[string]map[string]bool) {
	t.Helper()
	names, values = map[string]bool{}, map[string]map[string]bool{}
	for _, family := range full(t) {
		names[family.GetName()] = true
		if family.GetMetric()[0].GetHistogram() != nil {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				names[family.GetName()+suffix] = true
			}
		}
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				if values[label.GetName()] == nil {
					values[label.GetName()] = map[string]bool{}
				}
				values[label.GetName()][label.GetValue()] = true
			}
		}
	}
	return names, values
}

var (
	seriesName   = regexp.MustCompile(`apikeys_\w+`)
	labelMatcher = regexp.MustCompile(`\b(code|type|health|trigger|result)(=~|!=|=)"([^"]*)"`)
)

// checkExpressions looks for names and values that no series has.
func checkExpressions(t *testing.T, where, text string) {
	t.Helper()
	names, values := series(t)
	for _, name := range seriesName.FindAllString(text, -1) {
		if !names[name] {
			t.Errorf("%s uses %s, which there is not", where, name)
		}
	}
	for _, match := range labelMatcher.FindAllStringSubmatch(text, -1) {
		label, operator, value := match[1], match[2], match[3]
		if operator != "=~" {
			if !values[label][value] {
				t.Errorf("%s asks for %s, which there is not", where, match[0])
			}
			continue
		}
		for part := range strings.SplitSeq(value, "|") {
			pattern := regexp.MustCompile("^(?:" + part + ")$")
			if !slices.ContainsFunc(slices.Collect(maps.Keys(values[label])), pattern.MatchString) {
				t.Errorf("%s asks for %s, and nothing is like %s", where, match[0], part)
			}
		}
	}
}

func TestAlertsAskForWhatThereIs(t *testing.T) {
	t.Parallel()
	rules, tests, guide := readFile(t, rulesFile), readFile(t, ruleTestsFile), readFile(t, page)
	checkExpressions(t, "the rules", regexp.MustCompile(`(?m)^\s*#.*$`).ReplaceAllString(rules, ""))
	alerts := strings.Split(rules, "- alert: ")[1:]
	for _, alert := range alerts {
		name, body, _ := strings.Cut(alert, "\n")
		for _, part := range []string{"severity: ", "summary: ", "description: ", "monitor-with-prometheus.md#" + strings.ToLower(name) + "\n"} {
			if !strings.Contains(body, part) {
				t.Errorf("alert %s has no %s", name, strings.TrimSpace(part))
			}
		}
		if !strings.Contains(guide, "\n### "+name+"\n") {
			t.Errorf("the guide does not say what to do about %s", name)
		}
		if !regexp.MustCompile(`alertname: ` + name + `\s+exp_alerts:`).MatchString(tests) {
			t.Errorf("no test has %s fire", name)
		}
		if !strings.Contains(tests, "alertname: "+name+"}") && name != "ApikeysKeyDamaged" {
			t.Errorf("no test has %s keep silent", name)
		}
	}
	if n := strings.Count(guide, "\n### Apikeys"); n != len(alerts) {
		t.Errorf("the guide has %d alerts, the rules %d", n, len(alerts))
	}
}

func TestTheDashboardAsksForWhatThereIs(t *testing.T) {
	t.Parallel()
	type source struct{ Type, UID string }
	var board struct {
		UID, Title string
		Templating struct {
			List []struct {
				Name, Type string
				Query      json.RawMessage // a text, or a map of more than that
			}
		}
		Panels []struct {
			ID          int
			Type, Title string
			Datasource  source
			GridPos     struct{ X, Y, W, H int }
			Targets     []struct {
				RefID, Expr string
				Datasource  source
			}
		}
	}
	if err := json.Unmarshal([]byte(readFile(t, dashboardFile)), &board); err != nil {
		t.Fatal(err)
	}
	if board.UID == "" || len(board.UID) > 40 || board.Title == "" {
		t.Errorf("uid %q, title %q", board.UID, board.Title)
	}
	if list := board.Templating.List; len(list) == 0 || list[0].Name != "datasource" || list[0].Type != "datasource" || string(list[0].Query) != `"prometheus"` {
		t.Errorf("the first variable is not the data source: %+v", list)
	}
	for _, variable := range board.Templating.List {
		checkExpressions(t, "variable "+variable.Name, string(variable.Query))
	}
	ids, taken := map[int]bool{}, map[[2]int]string{}
	for _, p := range board.Panels {
		if ids[p.ID] || p.Title == "" {
			t.Errorf("panel %d %q has an id that is taken, or no title", p.ID, p.Title)
		}
		ids[p.ID] = true
		if p.GridPos.X < 0 || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %q is wider than the page", p.Title)
		}
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" {
					t.Fatalf("panel %q covers %q", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			if target.Datasource.UID != "${datasource}" || p.Datasource.UID != "${datasource}" {
				t.Errorf("panel %q does not follow the data source", p.Title)
			}
			checkExpressions(t, "panel "+p.Title, target.Expr)
		}
	}
}
