//! The queries of the Azure page against the items that were sent.
//!
//! Not a parser of the language: each word of a query must be one of the
//! language's, a table, a column that a sent item fills, a name that the query
//! itself defines, or a key of `customDimensions` or `customMeasurements`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Words of the language that the page uses.
const LANGUAGE: [&str; 44] = [
    "ago",
    "and",
    "as",
    "asc",
    "avg",
    "between",
    "bin",
    "by",
    "coalesce",
    "count",
    "countif",
    "desc",
    "dcount",
    "distinct",
    "endswith",
    "extend",
    "fullouter",
    "has",
    "in",
    "inner",
    "isnotempty",
    "isempty",
    "join",
    "kind",
    "leftouter",
    "let",
    "make_set",
    "max",
    "min",
    "not",
    "on",
    "or",
    "order",
    "percentiles",
    "percentilesw",
    "project",
    "render",
    "strcat",
    "sum",
    "sumif",
    "summarize",
    "timechart",
    "union",
    "where",
];
/// More of them: conversions and constants.
const CONVERSIONS: [&str; 10] = [
    "tobool", "todouble", "tolong", "tostring", "true", "false", "iff", "max_of", "left", "right",
];

type Row = BTreeMap<&'static str, Value>;

/// The tables as Application Insights fills them from items.
pub struct Tables(BTreeMap<&'static str, Vec<Row>>);

impl Tables {
    /// What these items fill.
    pub fn of(items: &[Value]) -> Self {
        let mut tables: BTreeMap<&'static str, Vec<Row>> = BTreeMap::new();
        for item in items {
            let (table, row) = row(item);
            tables.entry(table).or_default().push(row);
        }
        Self(tables)
    }
}

/// The row of an item: columns as the service documents them.
fn row(item: &Value) -> (&'static str, Row) {
    let data = &item["data"]["baseData"];
    let tags = &item["tags"];
    let mut row = Row::from([
        ("timestamp", item["time"].clone()),
        ("operation_Id", tags["ai.operation.id"].clone()),
        ("operation_ParentId", tags["ai.operation.parentId"].clone()),
        ("operation_Name", tags["ai.operation.name"].clone()),
        ("cloud_RoleName", tags["ai.cloud.role"].clone()),
        ("cloud_RoleInstance", tags["ai.cloud.roleInstance"].clone()),
        ("sdkVersion", tags["ai.internal.sdkVersion"].clone()),
        // The service fills it from the rate, or with 1.
        ("itemCount", Value::from(1)),
        ("customDimensions", data["properties"].clone()),
        ("customMeasurements", data["measurements"].clone()),
    ]);
    let span = [
        ("id", "id"),
        ("name", "name"),
        ("duration", "duration"),
        ("success", "success"),
    ];
    let (table, kind, columns): (_, _, Vec<(&'static str, &str)>) =
        match item["data"]["baseType"].as_str().unwrap() {
            "RequestData" => {
                let own = [
                    ("source", "source"),
                    ("url", "url"),
                    ("resultCode", "responseCode"),
                ];
                ("requests", "request", [&span[..], &own].concat())
            }
            "RemoteDependencyData" => {
                let own = [
                    ("type", "type"),
                    ("target", "target"),
                    ("resultCode", "resultCode"),
                ];
                ("dependencies", "dependency", [&span[..], &own].concat())
            }
            "ExceptionData" => {
                let exception = &data["exceptions"][0];
                row.insert("type", exception["typeName"].clone());
                row.insert("outerMessage", exception["message"].clone());
                (
                    "exceptions",
                    "exception",
                    vec![("severityLevel", "severityLevel")],
                )
            }
            "MessageData" => {
                let own = vec![("message", "message"), ("severityLevel", "severityLevel")];
                ("traces", "trace", own)
            }
            "EventData" => ("customEvents", "customEvent", vec![("name", "name")]),
            "MetricData" => {
                let metric = &data["metrics"][0];
                for (column, field) in [
                    ("name", "name"),
                    ("value", "value"),
                    ("valueSum", "value"),
                    ("valueCount", "count"),
                    ("valueMin", "min"),
                    ("valueMax", "max"),
                ] {
                    row.insert(column, metric[field].clone());
                }
                ("customMetrics", "customMetric", Vec::new())
            }
            other => panic!("{other} fills no table"),
        };
    row.insert("itemType", Value::from(kind));
    for (column, field) in columns {
        row.insert(column, data[field].clone());
    }
    row.retain(|_, value| !value.is_null());
    (table, row)
}

/// The page's queries.
pub fn queries(page: &str) -> Vec<String> {
    let blocks = page.split("```kql\n").skip(1);
    blocks
        .map(|block| block.split("```").next().unwrap().to_owned())
        .collect()
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Sign(String),
}

fn tokens(query: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = query;
    while let Some(first) = rest.chars().next() {
        let word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
        let end = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if first == '"' {
            let end = rest[1..].find('"').expect("a string ends") + 2;
            tokens.push(Token::Text(rest[1..end - 1].to_owned()));
            end
        } else if word(first) {
            let end = rest.find(|c| !word(c)).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..end].to_owned()));
            end
        } else if first.is_whitespace() {
            first.len_utf8()
        } else {
            let end = ["==", "!=", "=~", "<=", ">="]
                .iter()
                .find(|sign| rest.starts_with(**sign))
                .map_or(first.len_utf8(), |sign| sign.len());
            tokens.push(Token::Sign(rest[..end].to_owned()));
            end
        };
        rest = &rest[end..];
    }
    tokens
}

/// What is wrong with a query, each in a sentence.
pub fn check(tables: &Tables, query: &str) -> Vec<String> {
    let tokens = tokens(query);
    let sign =
        |at: usize, text: &str| matches!(tokens.get(at), Some(Token::Sign(sign)) if sign == text);
    let word = |at: usize| match tokens.get(at) {
        Some(Token::Word(word)) => Some(word.as_str()),
        _ => None,
    };
    let defined: BTreeSet<&str> = (0..tokens.len())
        .filter(|at| sign(at + 1, "="))
        .filter_map(word)
        .collect();
    let rows: Vec<&Row> = tokens
        .iter()
        .filter_map(|token| match token {
            Token::Word(word) => tables.0.get(word.as_str()),
            _ => None,
        })
        .flatten()
        .collect();
    let mut mistakes = Vec::new();
    if rows.is_empty() {
        mistakes.push("it asks for no table".to_owned());
    }
    // Values that a column, or a key of a bag, has in some row.
    let values = |bag: Option<&str>, name: &str| -> Vec<&Value> {
        rows.iter()
            .filter_map(|row| match bag {
                Some(bag) => row.get(bag)?.get(name),
                None => row.get(name),
            })
            .collect()
    };
    // What the last named column or key may be compared with.
    let mut compared: Option<Vec<&Value>> = None;
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            Token::Word(bag)
                if ["customDimensions", "customMeasurements"].contains(&bag.as_str()) =>
            {
                let Some(key) = word(at + 2).filter(|_| sign(at + 1, ".")) else {
                    mistakes.push(format!("{bag} without a key"));
                    at += 1;
                    continue;
                };
                let found = values(Some(bag), key);
                if found.is_empty() {
                    mistakes.push(format!("no item has {bag}.{key}"));
                }
                compared = Some(found);
                at += 2;
            }
            Token::Word(word) if word.starts_with(|c: char| c.is_ascii_digit()) => {}
            // `$left.target`: a side of a join.
            Token::Word(word) if word == "$left" || word == "$right" => at += 1,
            Token::Word(word) if defined.contains(word.as_str()) => compared = None,
            Token::Word(word) if tables.0.contains_key(word.as_str()) => compared = None,
            Token::Word(word) if LANGUAGE.contains(&word.as_str()) => {}
            Token::Word(word) if CONVERSIONS.contains(&word.as_str()) => {}
            Token::Word(word) => {
                let found = values(None, word);
                if found.is_empty() {
                    mistakes.push(format!("{word} is no table, no column and no word"));
                }
                compared = Some(found);
            }
            Token::Text(text) => {
                let is_listed = sign(at - 1, "(") || sign(at - 1, ",");
                let is_compared = sign(at - 1, "==") || sign(at - 1, "!=") || is_listed;
                let is_seen = |values: &Vec<&Value>| {
                    let mut values = values.iter();
                    values.any(|value| value.as_str() == Some(text))
                };
                if is_compared && compared.as_ref().is_some_and(|values| !is_seen(values)) {
                    mistakes.push(format!("no item has the value {text}"));
                }
            }
            Token::Sign(sign) if sign == "|" => compared = None,
            Token::Sign(_) => {}
        }
        at += 1;
    }
    mistakes
        .into_iter()
        .map(|mistake| format!("{mistake}: {query}"))
        .collect()
}
