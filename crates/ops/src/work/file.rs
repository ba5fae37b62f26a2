//! Running a file op: its actions in order, each on the outcome of an earlier one or on an input.

use std::collections::HashMap;
use std::sync::Arc;

use diag::{Error, Result};
use layers::{LayerNote, WritableStack};
use llb::{ChownOpt, FileAction, FileActionKind, FileOp, UserOpt};
use tokio_util::sync::CancellationToken;

use super::output::Output;
use super::parts::{Parts, ReadOnly};
use crate::file_actions;
use crate::owner::resolve_owner;
use crate::{OpError, Owner, Root};

/// Runs a file op on its inputs; blocks on the disk.
pub fn run_file_op(
    parts: &Arc<Parts>,
    op: &FileOp,
    name: &str,
    inputs: &[Output],
    cancel: &CancellationToken,
) -> Result<Vec<Output>> {
    let mut state = State {
        parts,
        op,
        name,
        inputs,
        uses: count_uses(op, inputs.len()),
        results: HashMap::new(),
        mounted: HashMap::new(),
    };
    check(op, inputs.len())?;
    for (at, action) in op.actions.iter().enumerate() {
        if cancel.is_cancelled() {
            return Err(Error::canceled());
        }
        state.run(at, action, cancel)?;
    }
    state.outputs()
}

/// The outcome of an action.
enum Outcome {
    /// Still open to be changed by the one action that goes on from it.
    Open(WritableStack),
    Done(Output),
}

struct State<'a> {
    parts: &'a Arc<Parts>,
    op: &'a FileOp,
    name: &'a str,
    inputs: &'a [Output],
    /// How often each input or outcome is used by actions or as an output.
    uses: HashMap<usize, usize>,
    results: HashMap<usize, Outcome>,
    /// Stacks that are read from.
    mounted: HashMap<usize, ReadOnly>,
}

/// Every number that an action uses must be an input or an earlier action, and outputs must be
/// numbered without gaps.
fn check(op: &FileOp, inputs: usize) -> Result<()> {
    for (at, action) in op.actions.iter().enumerate() {
        for used in [action.input, action.secondary_input].into_iter().flatten() {
            if used >= inputs + at {
                return Err(Error::invalid(format!(
                    "invalid input index {used}, {} provided",
                    inputs + at
                )));
            }
        }
    }
    let mut outputs: Vec<usize> = op.actions.iter().filter_map(|a| a.output).collect();
    outputs.sort_unstable();
    if outputs.is_empty() {
        return Err(Error::invalid("no outputs specified"));
    }
    match outputs
        .iter()
        .enumerate()
        .find(|(at, output)| at != *output)
    {
        Some((at, output)) if output < &at => {
            Err(Error::invalid(format!("duplicate output {output}")))
        }
        Some((at, _)) => Err(Error::invalid(format!("missing output index {at}"))),
        None => Ok(()),
    }
}

fn count_uses(op: &FileOp, inputs: usize) -> HashMap<usize, usize> {
    let mut uses = HashMap::new();
    for (at, action) in op.actions.iter().enumerate() {
        for used in [action.input, action.secondary_input].into_iter().flatten() {
            *uses.entry(used).or_insert(0) += 1;
        }
        for used in owner_inputs(owner_of(&action.kind)) {
            *uses.entry(used).or_insert(0) += 1;
        }
        if action.output.is_some() {
            *uses.entry(inputs + at).or_insert(0) += 1;
        }
    }
    uses
}

fn owner_of(kind: &FileActionKind) -> Option<&ChownOpt> {
    match kind {
        FileActionKind::Copy(copy) => copy.owner.as_ref(),
        FileActionKind::MkFile(file) => file.owner.as_ref(),
        FileActionKind::MkDir(dir) => dir.owner.as_ref(),
        FileActionKind::Symlink(link) => link.owner.as_ref(),
        FileActionKind::Rm(_) => None,
    }
}

fn owner_inputs(owner: Option<&ChownOpt>) -> Vec<usize> {
    let options = owner.into_iter().flat_map(|o| [&o.user, &o.group]);
    options
        .filter_map(|option| match option {
            Some(UserOpt::ByName { input, .. }) => *input,
            _ => None,
        })
        .collect()
}

impl State<'_> {
    fn run(&mut self, at: usize, action: &FileAction, cancel: &CancellationToken) -> Result<()> {
        let number = self.inputs.len() + at;
        for read in action
            .secondary_input
            .into_iter()
            .chain(owner_inputs(owner_of(&action.kind)))
        {
            self.mount(read)?;
        }
        let writable = self.open(action.input)?;
        let target = Root::open(&writable.path())?;
        let owner = self.owner(owner_of(&action.kind))?;
        match &action.kind {
            FileActionKind::MkDir(dir) => file_actions::mkdir(&target, dir, owner)?,
            FileActionKind::MkFile(file) => file_actions::mkfile(&target, file, owner)?,
            FileActionKind::Symlink(link) => file_actions::symlink(&target, link, owner)?,
            FileActionKind::Rm(rm) => file_actions::rm(&target, rm)?,
            FileActionKind::Copy(copy) => {
                let empty;
                let source = match action.secondary_input {
                    Some(input) => &self.mounted(input)?.root,
                    None => {
                        empty = self.parts.read_only(&Default::default())?;
                        &empty.root
                    }
                };
                file_actions::copy(source, &target, copy, owner, cancel)?;
            }
        }
        drop(target);
        // An outcome that one later action changes and nobody else looks at goes on as it is.
        let goes_on = action.output.is_none()
            && self.uses.get(&number) == Some(&1)
            && self
                .op
                .actions
                .iter()
                .any(|later| later.input == Some(number));
        let outcome = if goes_on {
            Outcome::Open(writable)
        } else {
            let (stack, hold) = writable.commit_held(LayerNote::new(self.name))?;
            Outcome::Done(Output::held(stack, hold))
        };
        self.results.insert(number, outcome);
        Ok(())
    }

    /// A stack to change: an open outcome goes on, anything else gets a new layer.
    fn open(&mut self, input: Option<usize>) -> Result<WritableStack> {
        let Some(input) = input else {
            return Ok(self.parts.layers.writable(&Default::default())?);
        };
        if let Some(Outcome::Open(_)) = self.results.get(&input)
            && let Some(Outcome::Open(writable)) = self.results.remove(&input)
        {
            return Ok(writable);
        }
        Ok(self.parts.layers.writable(&self.output(input)?.stack)?)
    }

    fn mount(&mut self, input: usize) -> Result<()> {
        if !self.mounted.contains_key(&input) {
            let mounted = self.parts.read_only(&self.output(input)?.stack)?;
            self.mounted.insert(input, mounted);
        }
        Ok(())
    }

    fn mounted(&self, input: usize) -> Result<&ReadOnly, OpError> {
        self.mounted
            .get(&input)
            .ok_or_else(|| OpError::Invalid(format!("invalid input index {input}")))
    }

    fn output(&self, input: usize) -> Result<Output> {
        if let Some(output) = self.inputs.get(input) {
            return Ok(output.clone());
        }
        match self.results.get(&input) {
            Some(Outcome::Done(output)) => Ok(output.clone()),
            _ => Err(Error::invalid(format!("invalid input index {input}"))),
        }
    }

    fn owner(&self, owner: Option<&ChownOpt>) -> Result<Option<Owner>> {
        let Some(option) = owner else {
            return Ok(None);
        };
        let owner = resolve_owner(option, |input| Ok(&self.mounted(input)?.root))?;
        Ok(Some(owner))
    }

    fn outputs(self) -> Result<Vec<Output>> {
        let count = self.inputs.len();
        let mut outputs: Vec<(usize, Output)> = Vec::new();
        for (at, action) in self.op.actions.iter().enumerate() {
            if let Some(number) = action.output {
                outputs.push((number, self.output(count + at)?));
            }
        }
        outputs.sort_by_key(|(number, _)| *number);
        Ok(outputs.into_iter().map(|(_, output)| output).collect())
    }
}
