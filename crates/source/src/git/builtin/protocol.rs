//! What is said to a remote: which references there are, and which objects are wanted.
//!
//! Version 2 of the protocol, and the first for servers that know no other.
//! Format: <https://git-scm.com/docs/protocol-v2>, <https://git-scm.com/docs/pack-protocol>.

use diag::{Code, Error, Result};
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;

use super::object::{Format, Oid};
use super::packet::{DELIMITER, FLUSH, Packet, Stream, push_line};
use super::transport::Remote;

/// A name on the remote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) name: String,
    pub(super) oid: Oid,
    /// What an annotated tag stands for in the end.
    pub(super) peeled: Option<Oid>,
    /// The reference that it is another name of.
    pub(super) symbolic: Option<String>,
}

/// What is wanted, and what is here already.
#[derive(Debug, Default)]
pub(super) struct Wants {
    pub(super) wanted: Vec<Oid>,
    /// Whether only the objects themselves are wanted, without what came before them.
    pub(super) shallow: bool,
    /// Commits that are here with their files.
    pub(super) have: Vec<Oid>,
    /// Those of them whose parents are not here.
    pub(super) boundary: Vec<Oid>,
}

/// A remote that has said who it is.
pub(super) struct Session {
    remote: Remote,
    format: Format,
    spoken: Spoken,
}

/// The version that the remote speaks.
enum Spoken {
    Second,
    /// It said everything at once.
    First {
        references: Vec<Reference>,
        capabilities: Vec<String>,
    },
}

impl Session {
    /// Listens to the first words.
    pub(super) async fn open(mut remote: Remote) -> Result<Session> {
        let stateless = remote.is_stateless();
        match greet(&mut remote, stateless).await {
            Ok((spoken, format)) => Ok(Session {
                remote,
                format,
                spoken,
            }),
            Err(error) => Err(remote.explain(error).await),
        }
    }

    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// The references that begin with one of these.
    pub(super) async fn references(&mut self, prefixes: &[String]) -> Result<Vec<Reference>> {
        if let Spoken::First { references, .. } = &self.spoken {
            let wanted = |name: &str| prefixes.iter().any(|prefix| name.starts_with(prefix));
            let found = references.iter().filter(|one| wanted(&one.name));
            return Ok(found.cloned().collect());
        }
        let mut request = Vec::new();
        self.command("ls-refs", &mut request);
        push_line(&mut request, "peel\n");
        push_line(&mut request, "symrefs\n");
        for prefix in prefixes {
            push_line(&mut request, &format!("ref-prefix {prefix}\n"));
        }
        request.extend(FLUSH);
        let mut answer = self.remote.exchange(request).await?;
        let mut references = Vec::new();
        while let Some(line) = Packet::read_line(&mut answer).await? {
            references.push(reference(&line)?);
        }
        Ok(references)
    }

    /// Whether an object may be asked for by its name, though no reference has it.
    pub(super) fn gives_any_object(&self) -> bool {
        match &self.spoken {
            Spoken::Second => true,
            Spoken::First { capabilities, .. } => capabilities.iter().any(|name| {
                name == "allow-any-sha1-in-want" || name == "allow-reachable-sha1-in-want"
            }),
        }
    }

    /// Gets objects as a pack, and the names of commits whose parents were left out.
    ///
    /// # Errors
    /// What the remote says, and streams that end too early.
    pub(super) async fn fetch(
        &mut self,
        wants: &Wants,
        pack: &mut (impl AsyncWrite + Unpin),
    ) -> Result<Vec<Oid>> {
        let (request, first) = match &self.spoken {
            Spoken::Second => (self.second_request(wants), false),
            Spoken::First { capabilities, .. } => (self.first_request(wants, capabilities), true),
        };
        let mut answer = self.remote.exchange(request).await?;
        let boundary = if first {
            first_answer(&mut answer, wants.shallow).await?
        } else {
            second_answer(&mut answer).await?
        };
        receive(&mut answer, pack).await?;
        Ok(boundary)
    }

    fn command(&self, name: &str, request: &mut Vec<u8>) {
        push_line(request, &format!("command={name}"));
        push_line(request, "agent=git/cooperage");
        push_line(request, &format!("object-format={}", self.format.name()));
        request.extend(DELIMITER);
    }

    fn second_request(&self, wants: &Wants) -> Vec<u8> {
        let mut request = Vec::new();
        self.command("fetch", &mut request);
        // Without this a server leaves out what is here only where it costs it nothing.
        push_line(&mut request, "thin-pack\n");
        push_line(&mut request, "ofs-delta\n");
        push_line(&mut request, "no-progress\n");
        for oid in &wants.wanted {
            push_line(&mut request, &format!("want {oid}\n"));
        }
        for oid in &wants.boundary {
            push_line(&mut request, &format!("shallow {oid}\n"));
        }
        if wants.shallow {
            push_line(&mut request, "deepen 1\n");
        }
        for oid in &wants.have {
            push_line(&mut request, &format!("have {oid}\n"));
        }
        push_line(&mut request, "done\n");
        request.extend(FLUSH);
        request
    }

    /// Says nothing of what is here: that is a dialogue in this version.
    fn first_request(&self, wants: &Wants, capabilities: &[String]) -> Vec<u8> {
        let known = ["side-band-64k", "ofs-delta", "no-progress", "shallow"];
        let mut asked: Vec<String> = known
            .into_iter()
            .filter(|name| capabilities.iter().any(|known| known == name))
            .map(str::to_owned)
            .collect();
        if self.format != Format::Sha1 {
            asked.push(format!("object-format={}", self.format.name()));
        }
        let mut request = Vec::new();
        let mut asked = format!(" {}", asked.join(" "));
        for oid in &wants.wanted {
            push_line(&mut request, &format!("want {oid}{asked}\n"));
            asked.clear();
        }
        if wants.shallow {
            push_line(&mut request, "deepen 1\n");
        }
        request.extend(FLUSH);
        push_line(&mut request, "done\n");
        request
    }
}

async fn greet(remote: &mut Remote, stateless: bool) -> Result<(Spoken, Format)> {
    let mut stream = remote.greeting().await?;
    let mut line = Packet::read_line(&mut stream).await?;
    if stateless
        && line
            .as_deref()
            .is_some_and(|line| line.starts_with("# service="))
    {
        Packet::read(&mut stream).await?;
        line = Packet::read_line(&mut stream).await?;
    }
    let mut lines = Vec::new();
    while let Some(text) = line {
        lines.push(text);
        line = Packet::read_line(&mut stream).await?;
    }
    match lines.first().map(String::as_str) {
        Some("version 2") => {
            let format = object_format(lines.iter().map(String::as_str))?;
            Ok((Spoken::Second, format))
        }
        Some("version 1") => first_words(&lines[1..]),
        _ => first_words(&lines),
    }
}

/// Reads what a server of the first version says: references, after the first the capabilities.
fn first_words(lines: &[String]) -> Result<(Spoken, Format)> {
    let (mut references, mut capabilities) = (Vec::<Reference>::new(), Vec::new());
    for line in lines {
        let (line, said) = line.split_once('\0').unwrap_or((line, ""));
        capabilities.extend(said.split_whitespace().map(str::to_owned));
        if line.starts_with("shallow ") {
            continue;
        }
        let found = reference(line)?;
        match (found.name.strip_suffix("^{}"), references.last_mut()) {
            (Some("capabilities"), _) => {}
            (Some(name), Some(last)) if last.name == name => last.peeled = Some(found.oid),
            _ => references.push(found),
        }
    }
    for capability in &capabilities {
        if let Some((name, target)) = capability
            .strip_prefix("symref=")
            .and_then(|pair| pair.split_once(':'))
            && let Some(one) = references.iter_mut().find(|one| one.name == name)
        {
            one.symbolic = Some(target.to_owned());
        }
    }
    let format = object_format(capabilities.iter().map(String::as_str))?;
    Ok((
        Spoken::First {
            references,
            capabilities,
        },
        format,
    ))
}

fn object_format<'a>(mut capabilities: impl Iterator<Item = &'a str>) -> Result<Format> {
    match capabilities.find_map(|one| one.strip_prefix("object-format=")) {
        None => Ok(Format::Sha1),
        Some(name) => Format::from_name(name)
            .ok_or_else(|| Error::unimplemented(format!("object format {name} of the remote"))),
    }
}

/// `<oid> <name>` and attributes.
fn reference(line: &str) -> Result<Reference> {
    let mut words = line.split(' ');
    let (Some(oid), Some(name)) = (words.next(), words.next()) else {
        return Err(Error::new(
            Code::Unavailable,
            format!("the remote says {line:?} where a reference is due"),
        ));
    };
    let mut found = Reference {
        name: name.to_owned(),
        oid: Oid::parse(oid)?,
        peeled: None,
        symbolic: None,
    };
    for word in words {
        if let Some(oid) = word.strip_prefix("peeled:") {
            found.peeled = Some(Oid::parse(oid)?);
        } else if let Some(target) = word.strip_prefix("symref-target:") {
            found.symbolic = Some(target.to_owned());
        }
    }
    Ok(found)
}

/// Reads the sections before the pack.
async fn second_answer(answer: &mut Stream<'_>) -> Result<Vec<Oid>> {
    let mut boundary = Vec::new();
    loop {
        match Packet::read_line(answer).await?.as_deref() {
            Some("packfile") => return Ok(boundary),
            Some("shallow-info" | "acknowledgments" | "wanted-refs" | "packfile-uris") | None => {}
            Some(line) => boundary.extend(boundary_of(line)?),
        }
    }
}

async fn first_answer(answer: &mut Stream<'_>, shallow: bool) -> Result<Vec<Oid>> {
    let mut boundary = Vec::new();
    while shallow && let Some(line) = Packet::read_line(answer).await? {
        boundary.extend(boundary_of(&line)?);
    }
    let said = Packet::read_line(answer).await?.unwrap_or_default();
    if said != "NAK" {
        let text = format!("the remote says {said:?} instead of sending objects");
        return Err(Error::new(Code::Unavailable, text));
    }
    Ok(boundary)
}

fn boundary_of(line: &str) -> Result<Option<Oid>> {
    line.strip_prefix("shallow ").map(Oid::parse).transpose()
}

/// Takes the pack out of its stream, which also has what the remote wants to say.
async fn receive(answer: &mut Stream<'_>, pack: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
    while let Packet::Data(data) = Packet::read(answer).await? {
        match data.split_first() {
            Some((1, piece)) => pack.write_all(piece).await?,
            Some((2, _)) => {}
            Some((3, said)) => {
                let said = String::from_utf8_lossy(said);
                let text = format!("remote error: {}", said.trim_end());
                return Err(Error::new(Code::Unknown, text));
            }
            _ => {
                let text = "the remote sends objects in an unknown way";
                return Err(Error::new(Code::Unavailable, text));
            }
        }
    }
    pack.flush().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "ce013625030ba8dba906f756967f9e9ca394464a";

    #[test]
    fn a_reference_has_attributes() {
        let line = format!("{A} refs/tags/v1 peeled:{A}");
        let found = reference(&line).unwrap();
        assert_eq!(found.peeled, Some(found.oid));
        let head = reference(&format!("{A} HEAD symref-target:refs/heads/x")).unwrap();
        assert_eq!(head.symbolic.as_deref(), Some("refs/heads/x"));
        assert!(reference("nonsense").is_err());
    }

    #[test]
    fn the_first_version_says_all_at_once() {
        let lines = [
            format!(
                "{A} HEAD\0side-band-64k symref=HEAD:refs/heads/x allow-reachable-sha1-in-want"
            ),
            format!("{A} refs/tags/v1"),
            format!("{A} refs/tags/v1^{{}}"),
        ];
        let (spoken, format) = first_words(&lines).unwrap();
        assert_eq!(format, Format::Sha1);
        let Spoken::First { references, .. } = spoken else {
            panic!("the first version");
        };
        assert_eq!(references[0].symbolic.as_deref(), Some("refs/heads/x"));
        assert!(references[1].peeled.is_some());
        assert_eq!(references.len(), 2);
    }

    #[tokio::test]
    async fn a_remote_may_fail_while_it_sends() {
        let mut wire = Vec::new();
        push_line(&mut wire, "\u{3}out of memory\n");
        let mut stream: Stream<'_> = Box::new(wire.as_slice());
        let error = receive(&mut stream, &mut Vec::new()).await.unwrap_err();
        assert_eq!(error.to_string(), "remote error: out of memory");
    }
}
