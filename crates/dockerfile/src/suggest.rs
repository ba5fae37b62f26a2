//! "Did you mean": the option nearest to what was typed.

use std::borrow::Cow;

/// The option at an edit distance below three from `value`, nearest first and in the order given;
/// none if `value` is itself one of the options. Without `case_sensitive` the answer takes the
/// letter case of `value`.
pub fn nearest<'a>(
    value: &str,
    options: impl IntoIterator<Item = &'a str>,
    case_sensitive: bool,
) -> Option<String> {
    let fold = |text: &'a str| match case_sensitive {
        true => Cow::Borrowed(text),
        false => Cow::Owned(text.to_lowercase()),
    };
    let lower;
    let wanted = if case_sensitive {
        value
    } else {
        lower = value.to_lowercase();
        &lower
    };
    let mut best: Option<(usize, Cow<'a, str>)> = None;
    for option in options {
        let option = fold(option);
        if option == wanted {
            return None;
        }
        let limit = best
            .as_ref()
            .map_or(DISTANCE_LIMIT, |(distance, _)| *distance);
        if let Some(distance) = distance_below(wanted, &option, limit) {
            best = Some((distance, option));
        }
    }
    let (_, found) = best.filter(|(_, found)| !found.is_empty())?;
    if case_sensitive {
        return Some(found.into_owned());
    }
    Some(if value == value.to_lowercase() {
        found.to_lowercase()
    } else if value == value.to_uppercase() {
        found.to_uppercase()
    } else {
        found.into_owned()
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

/// The Levenshtein distance of two texts that differ if it is below `limit`.
fn distance_below(a: &str, b: &str, limit: usize) -> Option<usize> {
    // Nothing that differs is nearer than one edit.
    let edits = limit.checked_sub(1).filter(|edits| *edits > 0)?;
    if a.is_ascii() && b.is_ascii() {
        // An edit takes at most one letter away and brings at most one.
        let differing = (letters(a) ^ letters(b)).count_ones() as usize;
        if a.len().abs_diff(b.len()) > edits || differing > 2 * edits {
            return None;
        }
        return distance_within(a.as_bytes(), b.as_bytes(), edits);
    }
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    distance_within(&a, &b, edits)
}

/// The set of the letters of a text; some share a place.
fn letters(text: &str) -> u64 {
    let mut set = 0;
    for byte in text.as_bytes() {
        set |= 1 << (byte & 63);
    }
    set
}

/// The Levenshtein distance if that many edits are enough. Every edit is tried at the first place
/// where the two differ: the work grows with the length alone while `edits` stays as small as it is.
fn distance_within<T: Copy + PartialEq>(a: &[T], b: &[T], edits: usize) -> Option<usize> {
    if a.len().abs_diff(b.len()) > edits {
        return None;
    }
    if edits == 0 {
        return (a == b).then_some(0);
    }
    let common = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[common..], &b[common..]);
    let (Some((_, a_rest)), Some((_, b_rest))) = (a.split_first(), b.split_first()) else {
        return Some(a.len().max(b.len()));
    };
    [(a_rest, b_rest), (a_rest, b), (a, b_rest)]
        .into_iter()
        .filter_map(|(a, b)| distance_within(a, b, edits - 1))
        .min()
        .map(|distance| distance + 1)
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
    /// The distance by the table of all prefixes.
    fn distance(a: &str, b: &str) -> usize {
        let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
        let mut row: Vec<usize> = (0..=b.len()).collect();
        for (i, x) in a.iter().enumerate() {
            let mut diagonal = row[0];
            row[0] = i + 1;
            for (j, y) in b.iter().enumerate() {
                let replaced = diagonal + usize::from(x != y);
                diagonal = row[j + 1];
                row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
            }
        }
        row[b.len()]
    }

    /// Every text of at most five of three letters, one of which is not ASCII.
    #[test]
    fn the_bounded_distance_is_the_distance() {
        let mut texts = vec![String::new()];
        let mut last = texts.clone();
        for _ in 0..5 {
            last = last
                .iter()
                .flat_map(|text| ["a", "b", "ü"].map(|letter| format!("{text}{letter}")))
                .collect();
            texts.extend(last.iter().cloned());
        }
        for a in texts.iter().step_by(3) {
            for b in texts.iter().filter(|b| *b != a) {
                for limit in 1..=DISTANCE_LIMIT {
                    let expected = Some(distance(a, b)).filter(|distance| *distance < limit);
                    assert_eq!(distance_below(a, b, limit), expected, "{a} {b} {limit}");
                }
            }
        }
    }

    #[test]
    fn the_first_of_the_nearest_wins_and_the_value_itself_ends_the_search() {
        let options = ["abcxx", "abcdx", "abcde2", "zbcde"];
        assert_eq!(nearest("abcde", options, true).as_deref(), Some("abcdx"));
        let options = options.into_iter().chain(["abcde"]);
        assert_eq!(nearest("abcde", options, true), None);
        assert_eq!(nearest("ab", ["", "abcde"], true), None);
    }
}
