//! The colours of the terminal display, and `NO_COLOR` and `BUILDKIT_COLORS`.

/// A foreground colour, as the escape sequence that switches to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Color(String);

/// Which colour stands for what; `None` prints without.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Colors {
    /// Completed steps.
    pub run: Option<Color>,
    /// Cancelled steps.
    pub cancel: Option<Color>,
    /// Failed steps.
    pub error: Option<Color>,
    /// Warnings.
    pub warning: Option<Color>,
}

const NAMES: [(&str, u8); 17] = [
    ("default", 39),
    ("black", 30),
    ("red", 31),
    ("green", 32),
    ("yellow", 33),
    ("blue", 34),
    ("magenta", 35),
    ("cyan", 36),
    ("white", 37),
    ("light-black", 90),
    ("light-red", 91),
    ("light-green", 92),
    ("light-yellow", 93),
    ("light-blue", 94),
    ("light-magenta", 95),
    ("light-cyan", 96),
    ("light-white", 97),
];

impl Color {
    /// The colour of a name such as `light-blue`, or of `R,G,B` with numbers from 0 to 255.
    pub fn parse(text: &str) -> Option<Self> {
        let name = text.to_ascii_lowercase();
        if let Some((_, code)) = NAMES.iter().find(|(known, _)| *known == name) {
            return Some(Color(format!("\x1b[{code}m")));
        }
        let parts: Vec<u8> = text
            .split(',')
            .map(|part| part.parse().ok())
            .collect::<Option<_>>()?;
        let [red, green, blue] = parts[..] else {
            return None;
        };
        // The 6×6×6 cube of the 256-colour palette.
        let index =
            16 + 36 * u32::from(red / 43) + 6 * u32::from(green / 43) + u32::from(blue / 43);
        Some(Color(format!("\x1b[38;5;{index}m")))
    }

    /// Not a colour: less bright than the rest.
    pub(crate) fn faint() -> Self {
        Color("\x1b[2m".to_owned())
    }

    /// The text in this colour.
    pub fn apply(&self, text: &str) -> String {
        format!("{}{text}\x1b[0m", self.0)
    }
}

impl Colors {
    /// Stock's colours.
    pub fn standard() -> Self {
        let named = |name| Color::parse(name);
        Colors {
            run: named("blue"),
            cancel: named("yellow"),
            error: named("red"),
            warning: named("yellow"),
        }
    }

    /// The colours the environment asks for: none with a non-empty `NO_COLOR`, else stock's with
    /// those of `BUILDKIT_COLORS` (`run=green:error=1,2,3:…`) in their place. Entries that cannot be
    /// read are passed over and returned, for a warning.
    pub fn from_env(no_color: Option<&str>, buildkit_colors: Option<&str>) -> (Self, Vec<String>) {
        if no_color.is_some_and(|value| !value.is_empty()) {
            return (Colors::default(), Vec::new());
        }
        let mut colors = Colors::standard();
        let mut bad = Vec::new();
        for entry in buildkit_colors.unwrap_or_default().split(':') {
            if entry.is_empty() {
                continue;
            }
            let parsed = entry
                .split_once('=')
                .and_then(|(key, value)| Some((key.to_ascii_lowercase(), Color::parse(value)?)));
            match parsed {
                Some((key, color)) if key == "run" => colors.run = Some(color),
                Some((key, color)) if key == "cancel" => colors.cancel = Some(color),
                Some((key, color)) if key == "error" => colors.error = Some(color),
                Some((key, color)) if key == "warning" => colors.warning = Some(color),
                _ => bad.push(entry.to_owned()),
            }
        }
        (colors, bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colors_come_from_the_environment() {
        let (colors, bad) =
            Colors::from_env(None, Some("run=light-green:ERROR=255,0,128:x=red:cancel"));
        assert_eq!(colors.run, Some(Color("\x1b[92m".into())));
        assert_eq!(colors.error, Some(Color("\x1b[38;5;198m".into())));
        assert_eq!(colors.cancel, Colors::standard().cancel);
        assert_eq!(bad, ["x=red", "cancel"]);
        assert_eq!(
            Colors::from_env(Some("1"), Some("run=red")).0,
            Colors::default()
        );
        assert_eq!(Colors::from_env(Some(""), None).0, Colors::standard());
    }
}
