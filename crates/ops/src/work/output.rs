//! What an op gives: a stack of layers, protected from removal while anybody has it.

use layers::{LayerHold, LayerStack, LayerStore};
use serde::{Deserialize, Serialize};

/// One output of an op.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Output {
    /// The files.
    pub stack: LayerStack,
    /// Keeps them; absent only in an output as it was stored.
    #[serde(skip)]
    #[expect(dead_code, reason = "it is there to be dropped")]
    hold: Option<LayerHold>,
}

impl Output {
    /// An output that somebody holds already.
    pub fn held(stack: LayerStack, hold: LayerHold) -> Self {
        Output {
            stack,
            hold: Some(hold),
        }
    }

    /// The empty file system.
    pub fn empty() -> Self {
        Self::default()
    }

    /// An output made of layers of outputs that are held now.
    pub fn of(layers: &LayerStore, stack: LayerStack) -> Self {
        let hold = layers.hold(&stack);
        Output::held(stack, hold)
    }

    /// A stored output to be used again, or `None` if a layer of it is gone.
    pub fn revive(&self, layers: &LayerStore) -> Option<Self> {
        let hold = layers.try_hold(&self.stack).ok()?;
        Some(Output::held(self.stack.clone(), hold))
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Output").field(&self.stack).finish()
    }
}
