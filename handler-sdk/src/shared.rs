//! What the instances of a generation share.

use std::any::{Any, TypeId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::outcome::Result;

/// Handler, generation and type.
type Key = (String, u64, TypeId);
type Cell = Mutex<Weak<dyn Any + Send + Sync>>;

static SHARED: Mutex<BTreeMap<Key, Arc<Cell>>> = Mutex::new(BTreeMap::new());

/// The value of a handler's generation, built if there is none.
pub(crate) fn get<T: Send + Sync + 'static>(
    (handler, generation): (&str, u64),
    build: impl FnOnce() -> Result<T>,
) -> Result<Arc<T>> {
    let cell = {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        // Values that no instance has any more; one that is being built has another reference to its cell.
        shared.retain(|_, cell| {
            // No other one has it while the map is locked. A `build` that has panicked does not end the sharing.
            Arc::get_mut(cell).is_none_or(|cell| {
                let value = cell.get_mut().unwrap_or_else(PoisonError::into_inner);
                value.strong_count() > 0
            })
        });
        let key = (handler.to_owned(), generation, TypeId::of::<T>());
        let empty = || Arc::new(Mutex::new(Weak::<T>::new() as _));
        Arc::clone(shared.entry(key).or_insert_with(empty))
    };
    // One builds, the others wait for it.
    let mut value = cell.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(Ok(known)) = value.upgrade().map(Arc::downcast) {
        return Ok(known);
    }
    let built = Arc::new(build()?);
    let any: Arc<dyn Any + Send + Sync> = built.clone();
    *value = Arc::downgrade(&any);
    Ok(built)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::HandlerError;

    #[test]
    fn a_value_is_built_once_per_generation_and_dropped_with_its_last_user() {
        static BUILT: AtomicU32 = AtomicU32::new(0);
        struct Pool(u32);
        let build = || Ok(Pool(BUILT.fetch_add(1, Ordering::SeqCst)));
        let refused = get::<Pool>(("a", 1), || Err(HandlerError::retryable("not now")));
        assert_eq!(refused.err(), Some(HandlerError::retryable("not now")));
        let users: Vec<Arc<Pool>> = std::thread::scope(|scope| {
            let users: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| get(("a", 1), build).ok()))
                .collect();
            users
                .into_iter()
                .map(|user| user.join().unwrap().unwrap())
                .collect()
        });
        assert!(users.iter().all(|user| user.0 == 0));
        assert_eq!(
            get(("a", 2), build).ok().unwrap().0,
            1,
            "another generation"
        );
        assert_eq!(get(("b", 1), build).ok().unwrap().0, 2, "another handler");
        assert_eq!(
            get(("a", 1), || Ok(7_u64)).ok().as_deref(),
            Some(&7),
            "another type"
        );
        let panics = std::panic::catch_unwind(|| get::<i8>(("a", 1), || panic!("not now")));
        assert!(panics.is_err());
        let first = get(("a", 1), || Ok(1_i8)).ok().unwrap();
        let second = get(("a", 1), || Ok(2_i8)).ok().unwrap();
        assert!(Arc::ptr_eq(&first, &second), "after a panic too");
        let weak = Arc::downgrade(&users[0]);
        drop(users);
        assert_eq!(weak.strong_count(), 0);
        assert_eq!(get(("a", 1), build).ok().unwrap().0, 3);
        let shared = SHARED.lock().unwrap();
        let kept = shared.iter().filter(|((handler, ..), _)| handler == "b");
        assert_eq!(kept.count(), 0, "what has no user is not kept");
    }
}
