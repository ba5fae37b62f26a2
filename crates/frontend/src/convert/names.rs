//! The names that steps are shown by: `[linux/amd64 build 2/5] RUN make`.

use dockerfile::shell::{Lexer, Variables};
use oci::Platform;

use crate::convert::Converter;
use crate::platform::parse_platform;
use crate::state::EnvList;

impl Converter<'_> {
    /// The name of the stage's next step. `with_env`: whether the stage's variables say what it
    /// builds for.
    pub(super) fn step_name(
        &mut self,
        id: usize,
        text: &str,
        platform: Option<&Platform>,
        with_env: bool,
    ) -> String {
        let prefix_platform = self.options.multi_platform;
        let stage = &mut self.stages[id];
        if stage.steps == 0 {
            return text.to_owned();
        }
        let mut out = String::from("[");
        if let Some(platform) = platform.filter(|_| prefix_platform) {
            out.push_str(&platform.to_string());
            if let Some(target) = with_env.then(|| platform_of_env(&stage.fs.env)).flatten() {
                out.push_str(&cross_suffix(platform, target));
            }
            out.push(' ');
        }
        if !stage.name.is_empty() {
            out.push_str(&stage.name);
            out.push(' ');
        }
        stage.step += 1;
        let width = stage.steps.ilog10() as usize + 1;
        out.push_str(&format!("{:>width$}/{}] ", stage.step, stage.steps));
        if stage.in_trigger {
            out.push_str("ONBUILD ");
        }
        out.push_str(text);
        out
    }

    /// The instruction's text with its variables, keyword in capitals.
    pub(super) fn shown_text(&self, lexer: &Lexer, text: &str, env: &dyn Variables) -> String {
        let text = match lexer.expand(text, env) {
            Ok(outcome) => outcome.text,
            Err(_) => text.to_owned(),
        };
        match text.split_once(' ') {
            Some((keyword, rest)) => format!("{} {rest}", keyword.to_uppercase()),
            None => text.to_uppercase(),
        }
    }
}

/// ` ->arm64` where a step on one platform builds for another one.
fn cross_suffix(base: &Platform, mut target: Platform) -> String {
    if target.os.is_empty() {
        target.os.clone_from(&base.os);
    }
    if target.architecture.is_empty() {
        target.architecture.clone_from(&base.architecture);
    }
    let target = target.normalized();
    if target.os != base.os {
        return format!("->{target}");
    }
    if target.architecture == base.architecture {
        return String::new();
    }
    if target.variant.is_empty() {
        format!("->{}", target.architecture)
    } else {
        format!("->{}/{}", target.architecture, target.variant)
    }
}

/// The platform that the variables of the target platform tell, if any is declared.
fn platform_of_env(env: &EnvList) -> Option<Platform> {
    let mut platform = Platform::default();
    let mut set = false;
    for (name, value) in env.iter() {
        let place = match name {
            "TARGETPLATFORM" => match parse_platform(value) {
                Ok(platform) => return Some(platform),
                Err(_) => continue,
            },
            "TARGETOS" => &mut platform.os,
            "TARGETARCH" => &mut platform.architecture,
            "TARGETVARIANT" => &mut platform.variant,
            _ => continue,
        };
        value.clone_into(place);
        set = true;
    }
    set.then_some(platform)
}
