//! What the instances of a generation share.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, TryLockError, Weak};

use crate::outcome::Result;

/// Handler, generation and type.
type Key = (String, u64, TypeId);
type Cell = Mutex<Weak<dyn Any + Send + Sync>>;

static SHARED: Mutex<Option<HashMap<Key, Arc<Cell>>>> = Mutex::new(None);

/// The value of a handler's generation, built if there is none.
pub(crate) fn get<T: Send + Sync + 'static>(
    (handler, generation): (&str, u64),
    build: impl FnOnce() -> Result<T>,
) -> Result<Arc<T>> {
    let cell = {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = shared.get_or_insert_default();
        // Values that no instance has any more; one that is being built has another reference to its cell.
        shared.retain(|_, cell| {
            Arc::strong_count(cell) > 1
                || match cell.try_lock() {
                    Ok(value) => value.strong_count() > 0,
                    // A `build` has panicked; a later one may have succeeded.
                    Err(TryLockError::Poisoned(value)) => value.get_ref().strong_count() > 0,
                    Err(TryLockError::WouldBlock) => true,
                }
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
        let kept = shared
            .iter()
            .flatten()
            .filter(|((handler, ..), _)| handler == "b");
        assert_eq!(kept.count(), 0, "what has no user is not kept");
    }
}
