//! The parameters of a target: arguments, secrets, ssh agents, with where they are declared.

use std::collections::{BTreeMap, BTreeSet};

use dockerfile::{ArgDeclaration, Lines};

use crate::convert::Converter;

/// A parameter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) value: String,
    pub(crate) required: bool,
    pub(crate) lines: Lines,
}

/// The parameters of a target, each list in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outline {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) args: Vec<Parameter>,
    pub(crate) secrets: Vec<Parameter>,
    pub(crate) ssh: Vec<Parameter>,
}

/// Arguments that are declared, with those their defaults use.
#[derive(Clone, Debug, Default)]
pub(super) struct Args(BTreeMap<String, (Parameter, BTreeSet<String>)>);

impl Args {
    /// Records a declaration.
    pub(super) fn declare(
        &mut self,
        arg: &ArgDeclaration,
        value: Option<String>,
        mut uses: BTreeSet<String>,
        lines: Lines,
    ) {
        // A default that uses the name itself means what was declared before.
        if uses.remove(&arg.key)
            && let Some((_, old)) = self.0.get(&arg.key)
        {
            uses.extend(old.iter().cloned());
        }
        let parameter = Parameter {
            name: arg.key.clone(),
            description: arg.doc_comment.clone(),
            value: value.unwrap_or_default(),
            required: false,
            lines,
        };
        self.0.insert(arg.key.clone(), (parameter, uses));
    }
}

/// What a stage contributes.
#[derive(Clone, Debug, Default)]
pub(super) struct StageOutline {
    pub(super) args: Args,
    used: BTreeSet<String>,
    secrets: BTreeMap<String, Parameter>,
    ssh: BTreeMap<String, Parameter>,
}

impl StageOutline {
    /// The arguments its `FROM` uses.
    pub(super) fn start(&mut self, used: BTreeSet<String>) {
        self.used.extend(used);
    }

    /// Records an `ARG`; one that only takes over a global one keeps its declaration there.
    pub(super) fn declare(
        &mut self,
        arg: &ArgDeclaration,
        value: Option<&str>,
        lines: Lines,
        from_global: bool,
    ) {
        if !from_global {
            let value = value.map(str::to_owned);
            self.args.declare(arg, value, BTreeSet::new(), lines);
        }
        self.used.insert(arg.key.clone());
    }

    /// Records a secret.
    pub(super) fn add_secret(&mut self, id: &str, required: bool, lines: Lines) {
        add(&mut self.secrets, id, required, lines);
    }

    /// Records an ssh agent.
    pub(super) fn add_ssh(&mut self, id: &str, required: bool, lines: Lines) {
        add(&mut self.ssh, id, required, lines);
    }

    /// The arguments that are used, also by defaults of used ones.
    fn used_args(&self) -> Vec<&Parameter> {
        let mut used: BTreeSet<&str> = BTreeSet::new();
        let mut wanted: Vec<&str> = self.used.iter().map(String::as_str).collect();
        while let Some(name) = wanted.pop() {
            if used.insert(name)
                && let Some((_, uses)) = self.args.0.get(name)
            {
                wanted.extend(uses.iter().map(String::as_str));
            }
        }
        used.iter()
            .filter_map(|name| self.args.0.get(*name).map(|(parameter, _)| parameter))
            .collect()
    }
}

fn add(all: &mut BTreeMap<String, Parameter>, id: &str, required: bool, lines: Lines) {
    all.entry(id.to_owned()).or_insert_with(|| Parameter {
        name: id.to_owned(),
        required,
        lines,
        ..Parameter::default()
    });
}

/// Puts together what the target and all it needs contribute.
pub(super) fn collect(converter: &Converter<'_>, target: usize) -> Outline {
    let stage = &converter.stages[target].stage;
    let mut outline = Outline {
        name: stage.name.clone(),
        description: stage.doc_comment.clone(),
        ..Outline::default()
    };
    let mut seen: [BTreeSet<String>; 3] = Default::default();
    let mut done = BTreeSet::new();
    let mut wanted = vec![target];
    while let Some(id) = wanted.pop() {
        if !done.insert(id) {
            continue;
        }
        let stage = &converter.stages[id];
        let own = &stage.outline;
        take(&mut outline.args, &mut seen[0], own.used_args());
        take(&mut outline.secrets, &mut seen[1], own.secrets.values());
        take(&mut outline.ssh, &mut seen[2], own.ssh.values());
        // The nearest declaration counts: what a stage continues comes before what it reads.
        wanted.extend(stage.needs.iter().rev().map(|(need, _)| *need));
        wanted.extend(stage.base);
    }
    for list in [&mut outline.args, &mut outline.secrets, &mut outline.ssh] {
        list.sort_by_key(|parameter| parameter.lines.first);
    }
    outline
}

fn take<'a>(
    list: &mut Vec<Parameter>,
    seen: &mut BTreeSet<String>,
    parameters: impl IntoIterator<Item = &'a Parameter>,
) {
    for parameter in parameters {
        if seen.insert(parameter.name.clone()) {
            list.push(parameter.clone());
        }
    }
}
