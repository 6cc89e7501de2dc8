//! `--variable`, with the forms that Spin has.

use std::path::Path;

/// What one `--variable` gives: names and values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variables(pub Vec<(String, String)>);

/// Reads `name=value`, `name=@file` (the file's text is the value) or `@file`
/// (a TOML or JSON file whose keys are names).
pub fn read(text: &str) -> Result<Variables, String> {
    if let Some(path) = text.strip_prefix('@') {
        return many(Path::new(path));
    }
    let (name, value) = text
        .split_once('=')
        .ok_or("write it as `name=value`, `name=@file` or `@file`")?;
    let value = match value.strip_prefix('@') {
        Some(path) => file(Path::new(path))?,
        None => value.to_owned(),
    };
    Ok(Variables(vec![(name.to_owned(), value)]))
}

fn file(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path)
        .map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

fn many(path: &Path) -> Result<Variables, String> {
    let text = file(path)?;
    let wrong = |error: &dyn std::fmt::Display| {
        format!(
            "{} is not a table of names and strings: {error}",
            path.display()
        )
    };
    let table: std::collections::BTreeMap<String, String> = if path
        .extension()
        .is_some_and(|extension| extension == "json")
    {
        serde_json::from_str(&text).map_err(|error| wrong(&error))?
    } else {
        toml::from_str(&text).map_err(|error| wrong(&error))?
    };
    Ok(Variables(table.into_iter().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(text: &str) -> Vec<(String, String)> {
        read(text).unwrap().0
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn a_value_is_given_as_it_is_or_by_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        assert_eq!(given("a=b=c"), [pair("a", "b=c")]);
        let text = path("secret", "one\ntwo");
        assert_eq!(given(&format!("a=@{text}")), [pair("a", "one\ntwo")]);
        let toml = path("all.toml", "a = \"1\"\nb = \"2\"");
        let json = path("all.json", r#"{"a":"1","b":"2"}"#);
        for many in [toml, json] {
            assert_eq!(given(&format!("@{many}")), [pair("a", "1"), pair("b", "2")]);
        }
    }

    #[test]
    fn what_is_wrong_is_told() {
        assert!(read("a").unwrap_err().contains("name=value"));
        assert!(
            read("a=@/nowhere")
                .unwrap_err()
                .contains("/nowhere cannot be read")
        );
        assert!(
            read("@/nowhere.toml")
                .unwrap_err()
                .contains("cannot be read")
        );
    }
}
