//! The grammar that seeds are read with.

use super::FuzzCase;
use crate::Dice;

/// The context of every generated Dockerfile.
pub const FILES: &[(&str, &str)] = &[
    ("a.txt", "file a\n"),
    ("b.md", "file b\n"),
    ("c d.txt", "a name with a space\n"),
    ("d/e.txt", "below d\n"),
    ("d/f/g.txt", "far below d\n"),
    ("d/f/h.md", "marked\n"),
    ("i/j", ""),
    (".k", "hidden\n"),
];

const SPEC: &str = "title = \"generated\"\n\
    [[setup]]\npath = \"ctx/link\"\ntype = \"symlink\"\ntarget = \"d/e.txt\"\n\
    [[setup]]\npath = \"ctx/d/run.sh\"\ntype = \"file\"\ncontent = \"#!/bin/sh\"\nmode = \"0755\"\n\
    [expect]\nstrict = true\nwarnings = true\n[build]\n";

/// A Dockerfile being written.
struct Writer {
    dice: Dice,
    lines: Vec<String>,
    stages: Vec<String>,
    has_shell: bool,
}

pub fn generate(seed: u64) -> FuzzCase {
    let mut writer = Writer {
        dice: Dice::new(seed),
        lines: Vec::new(),
        stages: Vec::new(),
        has_shell: false,
    };
    writer.dockerfile();
    let mut text = writer.lines.join("\n") + "\n";
    let dice = &mut writer.dice;
    // CRLF everywhere but in the middle of words is only white space.
    if dice.one_in(15) {
        text = text.replace('\n', "\r\n");
    }
    if dice.one_in(25) {
        text = format!("\u{feff}{text}");
    }
    if dice.one_in(4) {
        text = broken(&text, dice);
    }
    let mut spec = SPEC.to_owned();
    let is_check = dice.one_in(4);
    if is_check {
        spec += "call = \"check,format=json\"\n";
    }
    if dice.one_in(3) {
        spec += "args = { G = \"given\", X = \"x.y.z\", UNUSED = \"\" }\n";
    }
    // A newer rule warns of copies of ignored files: none in answers to checks.
    let ignore = (!is_check && dice.one_in(3)).then(|| ignore_file(dice));
    FuzzCase {
        seed,
        dockerfile: text,
        spec,
        ignore,
    }
}

fn ignore_file(dice: &mut Dice) -> String {
    let patterns = [
        "*.md",
        "**/*.md",
        "d",
        "!d/f",
        "d/*",
        "!d/f/g.txt",
        "**/g*",
        "# no",
        "",
        "/a.txt",
        "./i",
        "?.md",
        "!b.md",
        "d/f/",
        "**/f/**",
        ".k",
        "[a-c]*",
        "!**/*.txt",
    ];
    let count = 1 + dice.below(4);
    let lines: Vec<&str> = (0..count).map(|_| dice.pick(&patterns)).collect();
    // Whatever is ignored, what explicit copies name must not be: they fail otherwise.
    lines.join("\n") + "\n!a.txt\n!b.md\n!c d.txt\n!d\n!i\n!link\n"
}

/// The text with one character taken away, doubled, or replaced by one that means something.
fn broken(text: &str, dice: &mut Dice) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = dice.below(chars.len());
    let (before, after) = chars.split_at(at);
    let special = [
        "\"", "'", "\\", "$", "{", "}", "<<", "[", "]", "#", "=", " ", "--", "\n", "`", ",",
    ];
    let put = match dice.below(3) {
        0 => String::new(),
        1 => format!("{0}{0}", after[0]),
        _ => format!("{}{}", dice.pick(&special), after[0]),
    };
    before.iter().collect::<String>() + &put + &after[1..].iter().collect::<String>()
}

impl Writer {
    fn dockerfile(&mut self) {
        if self.dice.one_in(12) {
            let directive = [
                "# escape=\\",
                "# check=skip=JSONArgsRecommended",
                "# check=skip=all",
            ];
            let directive = self.dice.pick(&directive).to_owned();
            self.lines.push(directive);
        }
        if self.dice.one_in(3) {
            let arg = [
                "ARG G=global",
                "ARG G",
                "ARG BASE=busybox",
                "ARG X=1.2.3 G=\"g g\"",
            ];
            let arg = self.dice.pick(&arg).to_owned();
            self.lines.push(arg);
        }
        for number in 0..1 + self.dice.below(3) {
            self.stage(number);
            for _ in 0..3 + self.dice.below(8) {
                let line = self.instruction();
                let line = self.decorated(line);
                self.lines.push(line);
            }
        }
    }

    fn stage(&mut self, number: usize) {
        let (base, has_shell) = match self.dice.below(20) {
            0..=9 => ("scratch".to_owned(), false),
            10..=14 => ("busybox".to_owned(), true),
            15 => ("corpus/kitchen:1".to_owned(), true),
            16 => ("busybox:${TAG:-latest}".to_owned(), true),
            _ => match self.stages.last() {
                Some(stage) => (stage.clone(), false),
                None => ("scratch".to_owned(), false),
            },
        };
        self.has_shell = has_shell;
        let name = format!("s{number}");
        let keyword = self.dice.pick(&["AS", "AS", "AS", "as", "As"]);
        self.lines.push(format!("FROM {base} {keyword} {name}"));
        self.stages.push(name);
    }

    /// The line in other letters, over several lines, or after a comment.
    fn decorated(&mut self, line: String) -> String {
        match self.dice.below(16) {
            0 => match line.split_once(' ') {
                Some((word, rest)) if !line.contains("<<") => {
                    format!("{} {rest}", word.to_lowercase())
                }
                _ => line,
            },
            1 if !line.contains("<<") => line.replacen(' ', " \\\n  ", 1),
            2 if !line.contains("<<") => line.replacen(' ', " \\\n# comment\n  ", 1),
            3 => format!("# comment\n{line}"),
            4 => format!("\n  {line}"),
            _ => line,
        }
    }

    fn instruction(&mut self) -> String {
        match self.dice.below(34) {
            0..=4 => self.pairs("ENV"),
            5..=7 => self.pairs("LABEL"),
            8..=10 => self.arg(),
            11..=17 => self.copy(),
            18..=19 => self.heredoc(),
            20..=21 => format!("WORKDIR {}", self.word()),
            22 => format!(
                "USER {}",
                self.dice
                    .pick(&["1", "2:3", "$A", "${U:-app}", "app:staff"])
            ),
            23 => format!(
                "EXPOSE {}",
                self.dice.pick(&[
                    "80",
                    "80/udp 81",
                    "1-3",
                    "${P:-90}",
                    "53/tcp 53/udp",
                    "443/TCP"
                ])
            ),
            24 => format!(
                "VOLUME {}",
                self.dice
                    .pick(&["/v", "/v /w", "[\"/a b\", \"/c\"]", "$A", "/x$B"])
            ),
            25..=26 => format!("CMD {}", self.command()),
            27..=28 => format!("ENTRYPOINT {}", self.command()),
            29 => format!(
                "STOPSIGNAL {}",
                self.dice
                    .pick(&["9", "SIGINT", "TERM", "${S:-SIGHUP}", "SIGRTMIN+1"])
            ),
            30 => self.healthcheck(),
            31 => format!(
                "ONBUILD {}",
                self.dice.pick(&[
                    "RUN x  y",
                    "ENV A=b",
                    "COPY a.txt /q",
                    "LABEL a=$b",
                    "CMD [\"x\"]"
                ])
            ),
            32 => self.run(),
            _ => self
                .dice
                .pick(&[
                    "MAINTAINER me <m@example.org>",
                    "SHELL [\"/bin/sh\", \"-ec\"]",
                    "LABEL old style words",
                ])
                .to_owned(),
        }
    }

    /// A word as it may stand anywhere: text, variables in every form, quotes, escapes.
    fn word(&mut self) -> String {
        let pieces = [
            "a",
            "b-1",
            "x.y.z",
            "/p/q",
            "$A",
            "${B}",
            "${X:-d}",
            "${X-e}",
            "${A:+set}",
            "${A+s}",
            "${X#*.}",
            "${X##*.}",
            "${X%.*}",
            "${X%%.*}",
            "${X/./_}",
            "${X//./_}",
            "$G",
            "\"q r\"",
            "'$A'",
            "\"$A\"",
            "\\$A",
            "\\\"",
            "\\ ",
            "\"a'b\"",
            "'a\"b'",
            "${Z:-\"n m\"}",
            "${Z:-${A:-deep}}",
            "é",
            "${A%1}",
            "_$B_",
        ];
        let mut word = String::new();
        for _ in 0..1 + self.dice.below(3) {
            word += self.dice.pick(&pieces);
        }
        word
    }

    fn pairs(&mut self, keyword: &str) -> String {
        let mut line = keyword.to_owned();
        for _ in 0..1 + self.dice.below(3) {
            let name = self
                .dice
                .pick(&["A", "B", "X", "C_1", "PATH", "org.x", "\"A\""]);
            // A name in quotes is one for LABEL only.
            let name = if keyword == "ENV" {
                name.trim_matches('"')
            } else {
                name
            };
            line += &format!(" {name}={}", self.word());
        }
        line
    }

    fn arg(&mut self) -> String {
        match self.dice.below(5) {
            0 => "ARG G".to_owned(),
            1 => "ARG TARGETARCH TARGETOS".to_owned(),
            2 => format!("ARG A={} Z", self.word()),
            _ => format!(
                "ARG {}={}",
                self.dice.pick(&["A", "B", "X", "U"]),
                self.word()
            ),
        }
    }

    fn copy(&mut self) -> String {
        let keyword = self.dice.pick(&["COPY", "COPY", "COPY", "ADD"]);
        let mut line = keyword.to_owned();
        let from_stage = keyword == "COPY" && self.dice.one_in(5);
        let earlier = self.stages.len().saturating_sub(1);
        if from_stage && earlier > 0 && self.dice.one_in(2) {
            let stage = self.dice.below(earlier);
            let name = match self.dice.one_in(3) {
                true => stage.to_string(),
                false => self.stages[stage].clone(),
            };
            // Wildcards need not match; what is named must be there.
            let source = self
                .dice
                .pick(&["/*.txt", "/o*", "/p/*", "/ ", "/nothing*"])
                .trim();
            return format!("COPY --from={name} {source} /from{stage}/");
        }
        if from_stage {
            return format!(
                "COPY --from=busybox {} /{}/",
                self.dice
                    .pick(&["/etc/passwd", "/usr/share/data", "/home/app"]),
                self.dice.pick(&["o", "p"])
            );
        }
        for flag in [
            "--link",
            "--chown=5",
            "--chown=6:7",
            "--chmod=640",
            "--chmod=u+x,go-r",
            "--exclude=*.md",
            "--exclude=f",
        ] {
            if self.dice.one_in(9) && !line.contains(&flag[..6]) {
                line += &format!(" {flag}");
            }
        }
        let sources = [
            "a.txt",
            "a.txt b.md",
            "d",
            "d/",
            "*.txt",
            "d/f/*",
            "link",
            ".",
            "d/*.txt i",
            "a.t[x]t",
            "\"a.txt\"",
            "${N:-b.md}",
            "./d/../a.txt",
            "i/j",
        ];
        let targets = ["/", "/o/", "/p/q/", "/o/$A/", "./r/", "${W:-/w/}", "/p/"];
        match self.dice.below(8) {
            0 => line + " [\"c d.txt\", \"/o p/\"]",
            1 => format!(
                "{line} a.txt {}",
                self.dice.pick(&["/o/named", "named", "/p/x.y", "/${A}n"])
            ),
            _ => format!(
                "{line} {} {}",
                self.dice.pick(&sources),
                self.dice.pick(&targets)
            ),
        }
    }

    fn heredoc(&mut self) -> String {
        let (open, close) = match self.dice.below(4) {
            0 => ("<<\"EOF\"", "EOF"),
            1 => ("<<-EOF", "\tEOF"),
            2 => ("<<'E_1'", "E_1"),
            _ => ("<<EOF", "EOF"),
        };
        let body = match self.dice.below(4) {
            0 => String::new(),
            1 => format!("{}\n", self.word()),
            _ => format!("\tone {}\n\n  two \\\n", self.word()),
        };
        let flag = self
            .dice
            .pick(&["", "--chmod=600 ", "--link ", "--chown=8:9 "]);
        format!(
            "COPY {flag}{open} /here/{}\n{body}{close}",
            self.dice.pick(&["", "doc", "x/y"])
        )
    }

    fn command(&mut self) -> String {
        match self.dice.below(4) {
            0 => "[\"run\", \"$A\", \"x y\"]".to_owned(),
            1 => "[ \"one\" ]".to_owned(),
            2 => format!("go {}", self.word()),
            _ => self
                .dice
                .pick(&["a  b", "[not json]", "[\"open\"", "exec x && y"])
                .to_owned(),
        }
    }

    fn healthcheck(&mut self) -> String {
        let options = self.dice.pick(&[
            "",
            "--interval=5s ",
            "--timeout=1m --retries=3 ",
            "--start-period=1h30m --start-interval=2s ",
        ]);
        match self.dice.below(4) {
            0 => "HEALTHCHECK NONE".to_owned(),
            1 => format!("HEALTHCHECK {options}CMD [\"check\", \"it\"]"),
            _ => format!("HEALTHCHECK {options}CMD check $A"),
        }
    }

    /// Steps are slow there: few of them, and only where there is a shell.
    fn run(&mut self) -> String {
        if !self.has_shell {
            return self.pairs("ENV");
        }
        let commands = [
            "echo \"$A-$B\" > /run.txt",
            "mkdir -p /m/n && echo 1 > /m/n/o",
            "rm -rf /usr/share/data",
            "--network=none echo \"${X:-no}\" > /x.txt",
            "[\"touch\", \"/json file\"]",
            "--mount=type=bind,target=/b cat /b/a.txt > /bound",
            "ln -s /etc/passwd /ln && chmod 4711 /bin/busybox || true",
            "<<EOF\necho in $A > /here.txt\nEOF",
        ];
        format!("RUN {}", self.dice.pick(&commands))
    }
}

#[cfg(test)]
mod tests {
    use super::generate;

    #[test]
    fn a_seed_gives_the_same_dockerfile_always() {
        assert_eq!(generate(7).dockerfile, generate(7).dockerfile);
        assert_ne!(generate(7).dockerfile, generate(8).dockerfile);
    }
}
