//! A Grafana dashboard's queries, parsed, against an exposition.

use std::collections::{BTreeMap, BTreeSet};

use promql_parser::label::MatchOp;
use promql_parser::parser::{self, Expr, LabelModifier, VectorSelector};
use serde_json::Value;

/// Exposed, and shown nowhere on purpose.
const LEFT_OUT: [(&str, &str); 1] = [(
    "process_virtual_memory_bytes",
    "addresses that pools reserve say nothing about memory in use",
)];
/// Labels that Prometheus adds to what it scrapes.
const OF_SCRAPE: [&str; 2] = ["instance", "job"];
/// What Grafana puts in place of its own variables.
const OF_GRAFANA: [(&str, &str); 2] = [("$__rate_interval", "5m"), ("$__interval", "1m")];

type Labels = BTreeMap<String, BTreeSet<String>>;

/// What `/metrics` told.
pub struct Exposed {
    families: BTreeMap<String, String>,
    /// By the sample's own name, such as `…_bucket`: its family and labels.
    samples: BTreeMap<String, (String, Labels)>,
}

impl Exposed {
    /// Reads one or several expositions, and checks their form.
    pub fn read(text: &str) -> Self {
        let mut families = BTreeMap::new();
        let mut samples: BTreeMap<String, (String, Labels)> = BTreeMap::new();
        let (mut helped, mut family) = (String::new(), String::new());
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').unwrap();
                assert!(help.len() > 5, "{line}");
                name.clone_into(&mut helped);
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                assert_eq!(name, helped, "every metric has a help");
                check_name(name, kind);
                name.clone_into(&mut family);
                families.insert(name.to_owned(), kind.to_owned());
            } else if line != "# EOF" {
                let (selector, value) = line.rsplit_once(' ').unwrap();
                value.parse::<f64>().unwrap_or_else(|_| panic!("{line}"));
                // A series is written as its own selector.
                let Ok(Expr::VectorSelector(selector)) = parser::parse(selector) else {
                    panic!("{line}")
                };
                let name = selector.name.unwrap();
                assert!(name.starts_with(&family), "{line} is not of {family}");
                let (_, labels) = samples
                    .entry(name)
                    .or_insert_with(|| (family.clone(), Labels::new()));
                for matcher in selector.matchers.matchers {
                    labels
                        .entry(matcher.name)
                        .or_default()
                        .insert(matcher.value);
                }
            }
        }
        Self { families, samples }
    }

    /// Metrics that this text does not name, and names in it that are none.
    pub fn undocumented(&self, text: &str) -> Vec<String> {
        let short = |name: &str| {
            name.strip_prefix("orchestrator_")
                .unwrap_or(name)
                .to_owned()
        };
        let mut words: BTreeSet<String> = text.split('`').skip(1).step_by(2).map(short).collect();
        let mut mistakes = Vec::new();
        for (family, kind) in &self.families {
            let suffix = match kind.as_str() {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            if !words.remove(&format!("{}{suffix}", short(family))) {
                mistakes.push(format!("{family} is not documented"));
            }
        }
        let is_metric = |word: &&String| {
            let mut ends = ["_total", "_seconds", "_bytes", "_info", "_fds"].iter();
            ends.any(|end| word.ends_with(end))
        };
        let unknown = words.iter().filter(is_metric);
        mistakes.extend(unknown.map(|word| format!("{word} is documented, but not exposed")));
        mistakes
    }
}

/// Base units, and `_total` for what only grows.
fn check_name(name: &str, kind: &str) {
    let is_ours = name.starts_with("orchestrator_") || name.starts_with("process_");
    assert!(is_ours, "{name}");
    assert!(!name.ends_with("_total"), "{name}: the format adds it");
    for unit in [
        "_ms",
        "_millis",
        "_milliseconds",
        "_us",
        "_kb",
        "_mb",
        "_percent",
    ] {
        assert!(!name.ends_with(unit), "{name} has no base unit");
    }
    if kind == "histogram" {
        assert!(name.ends_with("_seconds"), "{name}");
    }
}

/// A query and where it stands.
struct Query {
    place: String,
    expr: String,
    legend: String,
}

/// What is wrong with the dashboard, each in a sentence.
pub fn check(exposed: &Exposed, dashboard: &Value) -> Vec<String> {
    let mut mistakes = Vec::new();
    let mut used = BTreeSet::new();
    let variables: BTreeSet<&str> = dashboard["templating"]["list"]
        .as_array()
        .unwrap()
        .iter()
        .map(|variable| variable["name"].as_str().unwrap())
        .collect();
    for query in queries(dashboard, &mut mistakes) {
        let mut text = query.expr.clone();
        for (variable, value) in OF_GRAFANA {
            text = text.replace(variable, value);
        }
        for variable in text.split('$').skip(1) {
            let end = variable.find(|c: char| !c.is_alphanumeric() && c != '_');
            let name = &variable[..end.unwrap_or(variable.len())];
            if !variables.contains(name) {
                mistakes.push(format!("{}: no variable ${name}", query.place));
            }
        }
        let mut found = Found {
            exposed,
            used: &mut used,
            mistakes: Vec::new(),
        };
        match parser::parse(&text) {
            Ok(expr) => {
                let labels = found.labels_of(&expr, false);
                for name in query.legend.split("{{").skip(1) {
                    let name = name.split("}}").next().unwrap();
                    if !labels.contains(name) {
                        found
                            .mistakes
                            .push(format!("the legend's {name} is no label"));
                    }
                }
            }
            Err(error) => found.mistakes.push(error),
        }
        let told = found.mistakes.into_iter();
        mistakes.extend(told.map(|mistake| format!("{}: {mistake}: {text}", query.place)));
    }
    for family in exposed.families.keys() {
        let is_left_out = LEFT_OUT.iter().any(|(name, _)| name == family);
        match (used.contains(family), is_left_out) {
            (false, false) => mistakes.push(format!("{family} is shown nowhere")),
            (true, true) => mistakes.push(format!("{family} is shown, though left out")),
            (true, false) | (false, true) => {}
        }
    }
    for (name, _) in LEFT_OUT {
        if !exposed.families.contains_key(name) {
            mistakes.push(format!("{name} is left out, but not exposed"));
        }
    }
    mistakes
}

/// All queries: of panels, annotations and variables.
fn queries(dashboard: &Value, mistakes: &mut Vec<String>) -> Vec<Query> {
    let mut queries = Vec::new();
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for panel in dashboard["panels"].as_array().unwrap() {
        let place = text(&panel["title"]);
        if !ids.insert(panel["id"].as_u64().unwrap()) {
            mistakes.push(format!("{place}: its id is another panel's"));
        }
        let cell = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        for x in cell("x")..cell("x") + cell("w") {
            for y in cell("y")..cell("y") + cell("h") {
                if x >= 24 || !taken.insert((x, y)) {
                    mistakes.push(format!("{place}: lies over another panel"));
                }
            }
        }
        for target in panel["targets"].as_array().into_iter().flatten() {
            if target["datasource"]["uid"] != "${datasource}" {
                mistakes.push(format!("{place}: its data source cannot be chosen"));
            }
            queries.push(Query {
                place: place.clone(),
                expr: text(&target["expr"]),
                legend: text(&target["legendFormat"]),
            });
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        if annotation["builtIn"] != 1 {
            queries.push(Query {
                place: text(&annotation["name"]),
                expr: text(&annotation["expr"]),
                legend: text(&annotation["titleFormat"]),
            });
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if variable["type"] != "query" {
            continue;
        }
        let query = text(&variable["query"]["query"]);
        let place = format!("${}", text(&variable["name"]));
        let values = query
            .strip_prefix("label_values(")
            .and_then(|rest| rest.strip_suffix(')')?.rsplit_once(", "));
        match values {
            Some((expr, label)) => queries.push(Query {
                place,
                expr: expr.to_owned(),
                legend: format!("{{{{{label}}}}}"),
            }),
            None => mistakes.push(format!("{place}: {query} is not understood")),
        }
    }
    queries
}

/// Walks one query.
struct Found<'a> {
    exposed: &'a Exposed,
    used: &'a mut BTreeSet<String>,
    mistakes: Vec<String>,
}

impl Found<'_> {
    /// The labels of what an expression answers. `in_rate`: it is under a
    /// function that wants what only grows.
    fn labels_of(&mut self, expr: &Expr, in_rate: bool) -> BTreeSet<String> {
        match expr {
            Expr::Aggregate(aggregate) => {
                let inner = self.labels_of(&aggregate.expr, false);
                let Some(modifier) = &aggregate.modifier else {
                    return BTreeSet::new();
                };
                let named: BTreeSet<String> = modifier.labels().labels.iter().cloned().collect();
                for label in named.difference(&inner) {
                    self.mistakes.push(format!("{label} is no label"));
                }
                match modifier {
                    LabelModifier::Include(_) => named,
                    LabelModifier::Exclude(_) => inner.difference(&named).cloned().collect(),
                }
            }
            Expr::Binary(binary) => {
                let left = self.labels_of(&binary.lhs, false);
                let right = self.labels_of(&binary.rhs, false);
                let is_number = |side: &Expr| matches!(side, Expr::NumberLiteral(_));
                match (is_number(&binary.lhs), is_number(&binary.rhs)) {
                    (true, _) => right,
                    (_, true) => left,
                    _ => {
                        if left != right {
                            self.mistakes.push("the two sides never match".to_owned());
                        }
                        left
                    }
                }
            }
            Expr::Call(call) => {
                let grows = ["rate", "increase", "irate"].contains(&call.func.name);
                let mut labels = BTreeSet::new();
                for argument in &call.args.args {
                    labels = self.labels_of(argument, grows);
                }
                if call.func.name == "histogram_quantile" && !labels.remove("le") {
                    self.mistakes.push("a quantile without `le`".to_owned());
                }
                labels
            }
            Expr::Paren(paren) => self.labels_of(&paren.expr, in_rate),
            Expr::MatrixSelector(matrix) => self.selector(&matrix.vs, Some(in_rate)),
            Expr::VectorSelector(selector) => self.selector(selector, None),
            Expr::NumberLiteral(_) => BTreeSet::new(),
            other => {
                self.mistakes.push(format!("{other:?} is not understood"));
                BTreeSet::new()
            }
        }
    }

    fn selector(&mut self, selector: &VectorSelector, rate: Option<bool>) -> BTreeSet<String> {
        let name = selector.name.as_deref().unwrap_or_default();
        let Some((family, labels)) = self.exposed.samples.get(name) else {
            self.mistakes.push(format!("{name} is not exposed"));
            return BTreeSet::new();
        };
        self.used.insert(family.clone());
        let grows = name.ends_with("_total") || self.exposed.families[family] == "histogram";
        // A sum may fall, where guests measure what is negative.
        let is_sum = name.ends_with("_sum");
        if grows != (rate == Some(true)) && !is_sum {
            let told = if grows {
                "only grows"
            } else {
                "does not only grow"
            };
            if rate != Some(false) || grows {
                self.mistakes.push(format!("{name} {told}"));
            }
        }
        for matcher in &selector.matchers.matchers {
            let Some(known) = labels.get(&matcher.name) else {
                if !OF_SCRAPE.contains(&matcher.name.as_str()) {
                    self.mistakes
                        .push(format!("{name} has no label {}", matcher.name));
                }
                continue;
            };
            let values: Vec<&str> = match matcher.op {
                MatchOp::Equal | MatchOp::NotEqual => vec![&matcher.value],
                MatchOp::Re(_) | MatchOp::NotRe(_) => matcher.value.split('|').collect(),
            };
            for value in values {
                if !value.starts_with('$') && !known.contains(value) {
                    self.mistakes
                        .push(format!("{} is never {value}", matcher.name));
                }
            }
        }
        let all = labels.keys().map(String::as_str).chain(OF_SCRAPE);
        all.map(str::to_owned).collect()
    }
}
