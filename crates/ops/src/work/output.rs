//! What an op gives: a stack of layers, protected from removal while anybody has it.

use std::sync::Arc;

use layers::{LayerHold, LayerStack, LayerStore, MadeOn};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One output of an op.
#[derive(Clone, Default)]
pub struct Output {
    /// The files; empty in an output as it was stored.
    pub stack: LayerStack,
    /// Keeps them; absent only in an output as it was stored.
    hold: Option<LayerHold>,
    /// As it was stored.
    stored: Option<MadeOn>,
    /// Removes its topmost layer; only for what no key leads to.
    #[expect(dead_code, reason = "it is there to be dropped")]
    temporary: Option<Arc<Temporary>>,
}

/// A layer that goes when nobody has it any more.
struct Temporary {
    layers: LayerStore,
    stack: LayerStack,
    hold: Option<LayerHold>,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        drop(self.hold.take());
        let (layers, top) = (self.layers.clone(), self.stack.top());
        let remove = move || {
            // Held by somebody else it stays, as any layer, until it is pruned.
            if let Some(Err(error)) = top.map(|top| layers.remove(top)) {
                tracing::debug!("a failed step's layer stays: {error}");
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

impl Output {
    /// An output that somebody holds already.
    pub fn held(stack: LayerStack, hold: LayerHold) -> Self {
        Output {
            stack,
            hold: Some(hold),
            stored: None,
            temporary: None,
        }
    }

    /// An output whose topmost layer, which nothing else leads to, is removed when nobody has the
    /// output any more.
    pub fn temporary(layers: &LayerStore, stack: LayerStack, hold: LayerHold) -> Self {
        let temporary = Temporary {
            layers: layers.clone(),
            stack: stack.clone(),
            hold: Some(hold),
        };
        Output {
            stack,
            hold: None,
            stored: None,
            temporary: Some(Arc::new(temporary)),
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
        let stack = match &self.stored {
            Some(short) => layers.stack_of(short)?,
            None => self.stack.clone(),
        };
        let hold = layers.try_hold(&stack).ok()?;
        Some(Output::held(stack, hold))
    }
}

/// In JSON: `{"stack": SHORT}`, with the short form that layers are stored with too.
#[derive(Serialize, Deserialize)]
struct Stored {
    stack: MadeOn,
}

impl Serialize for Output {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let stack = match (&self.stored, &self.hold) {
            (Some(short), _) => short.clone(),
            (None, Some(hold)) => hold.store().short_form(&self.stack),
            (None, None) => MadeOn::Stack(self.stack.clone()),
        };
        Stored { stack }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Output {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let stored = Stored::deserialize(deserializer)?;
        Ok(Output {
            stored: Some(stored.stack),
            ..Output::default()
        })
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Output").field(&self.stack).finish()
    }
}

#[cfg(test)]
mod tests {
    use layers::{Backend, LayerNote};

    use super::*;

    #[test]
    fn an_output_is_stored_in_few_words_and_found_again_as_long_as_its_layers_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let layers = LayerStore::open(dir.path(), Backend::Copy).unwrap();
        let mut output = Output::empty();
        for _ in 0..40 {
            let writable = layers.writable(&output.stack).unwrap();
            let (stack, hold) = writable.commit_held(LayerNote::new("step")).unwrap();
            output = Output::held(stack, hold);
        }
        let text = serde_json::to_string(&output).unwrap();
        assert!(text.len() < 60, "{text}");
        // As it was stored before there was a short form.
        let long = format!(
            "{{\"stack\":{}}}",
            serde_json::to_string(&output.stack).unwrap()
        );
        let stored = |text: &str| serde_json::from_str::<Output>(text).unwrap();
        for text in [&text, &long] {
            let found = stored(text).revive(&layers).unwrap();
            assert_eq!(found.stack, output.stack);
            assert_eq!(&serde_json::to_string(&stored(text)).unwrap(), text);
        }
        // A merge is no chain.
        let base = output.stack.prefix(1);
        let merged = Output::of(&layers, output.stack.joined(&base));
        let merged_text = serde_json::to_string(&merged).unwrap();
        let found = stored(&merged_text).revive(&layers).unwrap();
        assert_eq!(found.stack, merged.stack);
        let (below, top) = (
            output.stack.prefix(39).top().unwrap(),
            output.stack.top().unwrap(),
        );
        drop((found, merged, output));
        for gone in [top, below] {
            layers.remove(gone).unwrap();
            assert!(stored(&text).revive(&layers).is_none());
            assert!(stored(&long).revive(&layers).is_none());
        }
    }
}
