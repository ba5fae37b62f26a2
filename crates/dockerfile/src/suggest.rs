//! "Did you mean": the option nearest to what was typed.

/// The option at an edit distance below three from `value`, nearest first and in the order given;
/// none if `value` is itself one of the options. Without `case_sensitive` the answer takes the
/// letter case of `value`.
pub fn nearest<'a>(
    value: &str,
    options: impl IntoIterator<Item = &'a str>,
    case_sensitive: bool,
) -> Option<String> {
    let fold = |text: &str| {
        if case_sensitive {
            text.to_owned()
        } else {
            text.to_lowercase()
        }
    };
    let wanted = fold(value);
    let mut best: Option<(usize, String)> = None;
    for option in options {
        let option = fold(option);
        if option == wanted {
            return None;
        }
        let limit = best
            .as_ref()
            .map_or(DISTANCE_LIMIT, |(distance, _)| *distance);
        if let Some(distance) = distance_below(&wanted, &option, limit) {
            best = Some((distance, option));
        }
    }
    let (_, found) = best.filter(|(_, found)| !found.is_empty())?;
    if case_sensitive {
        return Some(found);
    }
    Some(if value == value.to_lowercase() {
        found.to_lowercase()
    } else if value == value.to_uppercase() {
        found.to_uppercase()
    } else {
        found
    })
}

/// The message with ` (did you mean X?)` after it when there is a near option.
pub fn with_suggestion<'a>(
    message: String,
    value: &str,
    options: impl IntoIterator<Item = &'a str>,
    case_sensitive: bool,
) -> String {
    match nearest(value, options, case_sensitive) {
        Some(found) => format!("{message} (did you mean {found}?)"),
        None => message,
    }
}

const DISTANCE_LIMIT: usize = 3;

/// The Levenshtein distance if it is below `limit`.
fn distance_below(a: &str, b: &str, limit: usize) -> Option<usize> {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) >= limit {
        return None;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
        if row.iter().all(|cost| *cost >= limit) {
            return None;
        }
    }
    row.last().copied().filter(|distance| *distance < limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_option_is_found_in_the_case_of_the_value() {
        assert_eq!(
            nearest("COPPY", ["copy", "cmd"], false).as_deref(),
            Some("COPY")
        );
        assert_eq!(nearest("tow", ["one", "two"], true).as_deref(), Some("two"));
        assert_eq!(
            nearest("chow", ["chmod", "chown"], true).as_deref(),
            Some("chown")
        );
        assert_eq!(nearest("two", ["two", "tow"], true), None);
        assert_eq!(nearest("something", ["else"], true), None);
    }
}
