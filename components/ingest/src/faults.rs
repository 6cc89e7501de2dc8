//! What is wrong with a body, fault by fault.

use std::fmt;

use serde::Serialize;

/// Most faults named in one answer: a body of nothing but unknown fields must
/// not be answered at a multiple of its own size. Later ones are counted.
pub const FAULTS_NAMED_MAX: usize = 100;

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Where: a JSON pointer (RFC 6901); empty for the body as a whole.
    pub pointer: String,
    /// What is wrong and what would be right.
    pub detail: String,
}

/// Every fault of one body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    named: Vec<Fault>,
    count: usize,
}

impl Faults {
    /// The one fault of a body that can't be taken apart.
    pub fn of_body(detail: impl fmt::Display) -> Self {
        let mut faults = Self::default();
        faults.add(&[], detail);
        faults
    }

    /// Adds a fault at the value that `path` leads to, member by member.
    pub fn add(&mut self, path: &[&str], detail: impl fmt::Display) {
        self.count += 1;
        if self.named.len() < FAULTS_NAMED_MAX {
            self.named.push(Fault {
                pointer: pointer(path),
                detail: detail.to_string(),
            });
        }
    }

    /// The first of them, at most [`FAULTS_NAMED_MAX`].
    pub fn named(&self) -> &[Fault] {
        &self.named
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }
}

fn pointer(path: &[&str]) -> String {
    let mut pointer = String::new();
    for name in path {
        pointer.push('/');
        for c in name.chars() {
            match c {
                '~' => pointer.push_str("~0"),
                '/' => pointer.push_str("~1"),
                c => pointer.push(c),
            }
        }
    }
    pointer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_escaped() {
        assert_eq!(pointer(&[]), "");
        assert_eq!(pointer(&["properties", "a/b~c"]), "/properties/a~1b~0c");
        assert_eq!(pointer(&["properties", ""]), "/properties/");
    }

    #[test]
    fn faults_beyond_the_bound_are_counted_not_named() {
        let mut faults = Faults::default();
        for _ in 0..FAULTS_NAMED_MAX + 7 {
            faults.add(&["x"], "is unknown");
        }
        assert_eq!(faults.named().len(), FAULTS_NAMED_MAX);
        assert_eq!(faults.count(), FAULTS_NAMED_MAX + 7);
    }
}
