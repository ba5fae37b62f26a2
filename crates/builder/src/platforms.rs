//! Lists of platforms as users write and read them.

use oci::{Platform, PlatformError};

/// Reads platforms, each text one or several with commas between.
pub fn parse_platforms(texts: &[String]) -> Result<Vec<Platform>, PlatformError> {
    texts
        .iter()
        .flat_map(|text| text.split(','))
        .map(|text| {
            if text.eq_ignore_ascii_case("local") {
                return Ok(Platform::host());
            }
            text.parse::<Platform>()
        })
        .collect()
}

/// The same platforms without repetitions, each normalised, in order.
pub fn dedupe(platforms: impl IntoIterator<Item = Platform>) -> Vec<Platform> {
    let mut seen = Vec::new();
    for platform in platforms {
        let platform = platform.normalized();
        if !seen.contains(&platform) {
            seen.push(platform);
        }
    }
    seen
}

/// The platforms a node has, those that the user fixed first and each with a star.
pub fn format_in_groups(fixed: &[Platform], all: &[Platform]) -> Vec<String> {
    let mut seen = Vec::new();
    let mut out = Vec::new();
    for (platforms, star) in [(fixed, "*"), (all, "")] {
        for platform in platforms {
            let text = platform.clone().normalized().to_string();
            if !seen.contains(&text) {
                out.push(format!("{text}{star}"));
                seen.push(text);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_platforms_come_first_with_a_star() {
        let parse = |text: &str| parse_platforms(&[text.to_owned()]).unwrap();
        assert_eq!(
            format_in_groups(&parse("linux/arm64/v8"), &parse("linux/amd64,linux/arm64")),
            ["linux/arm64*", "linux/amd64"]
        );
        assert!(parse_platforms(&["linux/amd64,,".to_owned()]).is_err());
    }
}
