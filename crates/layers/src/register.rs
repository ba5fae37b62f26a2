//! Which layers there are, what each was made on, and who holds it, in memory: a stack of thousands is
//! looked at for every step on top of it, and neither the disk nor the database is asked for that.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use parking_lot::{Mutex, MutexGuard};

use crate::{LayerError, LayerId, LayerStack, MadeOn, Result};

/// The layers of a store and their holders.
pub(crate) struct Register(Mutex<State>);

#[derive(Default)]
struct State {
    /// Every layer with what it was made on.
    known: HashMap<LayerId, Option<MadeOn>, Plain>,
    /// How often each layer is held; one may be held before it is known.
    holds: HashMap<LayerId, usize, Plain>,
}

impl Register {
    /// A register of these layers, none of them held.
    pub(crate) fn of(known: impl IntoIterator<Item = (LayerId, Option<MadeOn>)>) -> Self {
        Register(Mutex::new(State {
            known: known.into_iter().collect(),
            holds: HashMap::default(),
        }))
    }

    /// A layer has been recorded.
    pub(crate) fn add(&self, id: LayerId, made_on: Option<MadeOn>) {
        self.0.lock().known.insert(id, made_on);
    }

    /// The stack that a layer was made on; `None` if it was made on none, or that is not known any more.
    pub(crate) fn made_on(&self, id: LayerId) -> Option<LayerStack> {
        let state = self.0.lock();
        state.stack_of(state.known.get(&id)?.as_ref()?)
    }

    /// The stack of a short form, unless a layer that leads to the rest is gone.
    pub(crate) fn stack_of(&self, short: &MadeOn) -> Option<LayerStack> {
        self.0.lock().stack_of(short)
    }

    /// A stack in few words: by its topmost layer, if that was made on the rest of it.
    pub(crate) fn short_form(&self, stack: &LayerStack) -> MadeOn {
        let state = self.0.lock();
        match stack.top() {
            Some(top) if state.leads_to(top, stack.as_slice()) => MadeOn::Layer(top),
            _ => MadeOn::Stack(stack.clone()),
        }
    }

    /// Whether all layers of a stack are there.
    pub(crate) fn contains(&self, stack: &LayerStack) -> bool {
        self.0.lock().missing(stack).is_none()
    }

    pub(crate) fn hold(&self, stack: &LayerStack) {
        self.0.lock().hold(stack);
    }

    /// Holds all layers of a stack, or none if one is not there.
    pub(crate) fn try_hold(&self, stack: &LayerStack) -> Result<()> {
        let mut state = self.0.lock();
        match state.missing(stack) {
            Some(id) => Err(LayerError::NotFound(id)),
            None => {
                state.hold(stack);
                Ok(())
            }
        }
    }

    pub(crate) fn release(&self, stack: &LayerStack) {
        let mut state = self.0.lock();
        for id in stack.iter() {
            if let Some(count) = state.holds.get_mut(&id) {
                *count -= 1;
                if *count == 0 {
                    state.holds.remove(&id);
                }
            }
        }
    }

    pub(crate) fn is_held(&self, id: LayerId) -> bool {
        self.0.lock().holds.contains_key(&id)
    }

    /// Begins to remove a layer: nobody can hold another one, or this, until the guard is dropped.
    ///
    /// # Errors
    /// Held, when somebody does.
    pub(crate) fn removal(&self, id: LayerId) -> Result<Removal<'_>> {
        let state = self.0.lock();
        match state.holds.contains_key(&id) {
            true => Err(LayerError::Held(id)),
            false => Ok(Removal { state, id }),
        }
    }
}

/// A layer that is being removed.
pub(crate) struct Removal<'r> {
    state: MutexGuard<'r, State>,
    id: LayerId,
}

impl Removal<'_> {
    /// It is gone.
    pub(crate) fn done(mut self) {
        self.state.known.remove(&self.id);
    }
}

impl State {
    fn missing(&self, stack: &LayerStack) -> Option<LayerId> {
        stack.iter().find(|id| !self.known.contains_key(id))
    }

    /// Whether the stack that ends in `top` is this one.
    fn leads_to(&self, top: LayerId, mut stack: &[LayerId]) -> bool {
        let mut next = top;
        loop {
            match stack.split_last() {
                Some((last, rest)) if *last == next => stack = rest,
                _ => return false,
            }
            match self.known.get(&next) {
                Some(Some(MadeOn::Layer(below))) => next = *below,
                Some(Some(MadeOn::Stack(known))) => return known.as_slice() == stack,
                _ => return false,
            }
        }
    }

    fn stack_of(&self, short: &MadeOn) -> Option<LayerStack> {
        let mut above = Vec::new();
        let mut short = short;
        let bottom = loop {
            match short {
                MadeOn::Stack(stack) => break stack,
                MadeOn::Layer(id) => {
                    above.push(*id);
                    short = self.known.get(id)?.as_ref()?;
                }
            }
        };
        if above.is_empty() {
            return Some(bottom.clone());
        }
        Some(bottom.iter().chain(above.into_iter().rev()).collect())
    }

    fn hold(&mut self, stack: &LayerStack) {
        for id in stack.iter() {
            *self.holds.entry(id).or_insert(0) += 1;
        }
    }
}

/// Ids are random: their own bits spread them.
type Plain = BuildHasherDefault<PlainHasher>;

#[derive(Default)]
struct PlainHasher(u64);

impl Hasher for PlainHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u128(&mut self, id: u128) {
        self.0 = id as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_not_removed_and_what_is_gone_is_not_held() {
        let ids: Vec<LayerId> = (0..3).map(|_| LayerId::random()).collect();
        let register = Register::of(ids.iter().map(|id| (*id, None)));
        let stack = LayerStack::from_iter(ids[..2].iter().copied());
        register.try_hold(&stack).unwrap();
        assert!(matches!(register.removal(ids[1]), Err(LayerError::Held(id)) if id == ids[1]));
        // A removal that fails half way changes nothing.
        drop(register.removal(ids[2]).unwrap());
        assert!(register.contains(&ids[2].into()));
        register.release(&stack);
        register.removal(ids[1]).unwrap().done();
        assert!(matches!(register.try_hold(&stack), Err(LayerError::NotFound(id)) if id == ids[1]));
        // Of a stack that is not whole nothing stays held.
        assert!(!register.is_held(ids[0]));
        let new = LayerId::random();
        register.hold(&new.into());
        assert!(!register.contains(&new.into()));
        register.add(new, None);
        assert!(register.contains(&new.into()) && register.is_held(new));
    }

    #[test]
    fn a_chain_of_steps_is_known_by_its_top_and_anything_else_by_all_of_it() {
        let id = LayerId::random;
        let (pulled, one, two, three) = (id(), id(), id(), id());
        let base = LayerStack::from(pulled);
        let register = Register::of([(pulled, None)]);
        let mut stack = base.clone();
        for step in [one, two, three] {
            let short = register.short_form(&stack);
            assert_eq!(register.stack_of(&short), Some(stack.clone()));
            register.add(step, Some(short));
            stack = stack.with(step);
        }
        assert_eq!(register.short_form(&base), MadeOn::Stack(base.clone()));
        assert_eq!(register.short_form(&stack), MadeOn::Layer(three));
        assert_eq!(register.made_on(three), Some(stack.prefix(3)));
        assert_eq!(register.made_on(one), Some(base.clone()));
        assert_eq!(register.made_on(pulled), None);
        // The same top on something else.
        for other in [
            LayerStack::from(three),
            base.joined(&stack),
            LayerStack::from(vec![one, two, three]),
            LayerStack::from(vec![pulled, two, three]),
            LayerStack::empty(),
        ] {
            let short = register.short_form(&other);
            assert_eq!(short, MadeOn::Stack(other.clone()));
            assert_eq!(register.stack_of(&short), Some(other));
        }
        register.removal(two).unwrap().done();
        assert_eq!(register.stack_of(&MadeOn::Layer(three)), None);
        assert_eq!(register.made_on(three), None);
    }
}
