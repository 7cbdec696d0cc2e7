//! Numbers and paragraphs for people. Nothing is wider than [`WIDTH`] unless one word is.

pub(crate) use regard::bench::numbers::{bytes, counted, duration, rate, significant};

/// Columns of everything that is printed for people.
pub(crate) const WIDTH: usize = 100;

/// Words broken into lines, each after `indent` spaces.
pub(crate) fn wrap(text: &str, indent: usize) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always a line");
        if line.is_empty() {
            line.push_str(word);
        } else if indent + line.chars().count() + 1 + word.chars().count() <= WIDTH {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.iter().map(|line| format!("{:indent$}{line}", "")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_no_wider_than_they_may_be() {
        assert!(wrap(&"word ".repeat(60), 4).lines().all(|line| line.chars().count() <= WIDTH));
    }
}
