//! `ADD` and `COPY`.

use crate::flags::{FlagKind, Flags};
use crate::heredoc::Heredoc;
use crate::instruction::{AddInstruction, CopyInstruction, SourceContent, SourcesAndDest};
use crate::parser::Node;

fn sources_and_dest(node: &Node, keyword: &str) -> Result<SourcesAndDest, String> {
    let Some((dest, sources)) = node.arguments.words.split_last() else {
        return Err(no_destination(keyword));
    };
    if Heredoc::of(dest).is_some() {
        return Err(format!(
            "{keyword} cannot accept a heredoc as a destination"
        ));
    }
    let mut files = SourcesAndDest {
        dest: dest.clone(),
        ..SourcesAndDest::default()
    };
    for source in sources {
        let Some(word) = Heredoc::of(source) else {
            files.paths.push(source.clone());
            continue;
        };
        // Of several with one name the last one counts.
        let found = node.heredocs.iter().rev().find(|h| h.name == word.name);
        let content = found.map_or_else(Vec::new, |found| found.content.clone());
        let heredoc = Heredoc { content, ..word };
        files.contents.push(SourceContent {
            data: heredoc.text(),
            path: heredoc.name,
            expand: heredoc.expand,
        });
    }
    Ok(files)
}

fn no_destination(keyword: &str) -> String {
    format!(
        "{keyword} requires at least two arguments, but only one was provided. Destination could not be determined"
    )
}

pub(super) fn add(node: &Node) -> Result<AddInstruction, String> {
    if node.arguments.words.len() < 2 {
        return Err(no_destination("ADD"));
    }
    let known = [
        ("checksum", FlagKind::Text),
        ("chmod", FlagKind::Text),
        ("chown", FlagKind::Text),
        ("exclude", FlagKind::List),
        ("keep-git-dir", FlagKind::Bool),
        ("link", FlagKind::Bool),
        ("unpack", FlagKind::Bool),
    ];
    let mut flags = Flags::parse(&node.flags, &known)?;
    Ok(AddInstruction {
        files: sources_and_dest(node, "ADD")?,
        chown: flags.text("chown"),
        chmod: flags.text("chmod"),
        link: flags.boolean("link").unwrap_or(false),
        exclude: flags.list("exclude"),
        keep_git_dir: flags.boolean("keep-git-dir"),
        checksum: flags.text("checksum"),
        unpack: flags.boolean("unpack"),
    })
}

pub(super) fn copy(node: &Node) -> Result<CopyInstruction, String> {
    if node.arguments.words.len() < 2 {
        return Err(no_destination("COPY"));
    }
    let known = [
        ("chmod", FlagKind::Text),
        ("chown", FlagKind::Text),
        ("exclude", FlagKind::List),
        ("from", FlagKind::Text),
        ("link", FlagKind::Bool),
        ("parents", FlagKind::Bool),
    ];
    let mut flags = Flags::parse(&node.flags, &known)?;
    Ok(CopyInstruction {
        files: sources_and_dest(node, "COPY")?,
        from: flags.text("from"),
        chown: flags.text("chown"),
        chmod: flags.text("chmod"),
        link: flags.boolean("link").unwrap_or(false),
        exclude: flags.list("exclude"),
        parents: flags.boolean("parents").unwrap_or(false),
    })
}
