//! Plans that were made before: a warm request does no registry work. Knows no request's values.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use foldhash::quality::RandomState;
use model::Result;
use model::plan::Plan;
use model::registry::{FeatureRequest, Registry};
use window::Spec;

use crate::windows;

/// More distinct requests than this under one registry, and the plans are made anew: a client that
/// never repeats itself must not fill the memory.
const MOST: usize = 10_000;
/// The most bytes of spellings that are kept, and of one of them.
const SPELLINGS: usize = 16 << 20;
const SPELLING: usize = 256 << 10;

/// A plan with the window definitions of its views.
pub(super) struct Planned {
    pub(super) plan: Plan,
    /// One per view of the plan; `None` for a view without windows.
    pub(super) windows: Vec<Option<Spec>>,
}

/// The plans of one project under one registry revision.
#[derive(Default)]
pub(super) struct Plans {
    known: RwLock<Known>,
}

#[derive(Default)]
struct Known {
    revision: u64,
    plans: HashMap<(FeatureRequest, bool), Arc<Planned>, RandomState>,
    /// The plans again, by spellings of their features: those with short names, and those with full ones.
    spellings: [HashMap<Box<[u8]>, Arc<Planned>, RandomState>; 2],
    /// The bytes of all spellings.
    spelled: usize,
}

impl Known {
    fn forget_spellings(&mut self) {
        self.spellings.iter_mut().for_each(HashMap::clear);
        self.spelled = 0;
    }
}

impl Plans {
    /// The plan of a request, made where it is not known.
    pub(super) fn get(
        &self,
        registry: &Registry,
        project: &str,
        features: FeatureRequest,
        full_feature_names: bool,
    ) -> Result<Arc<Planned>> {
        let key = (features, full_feature_names);
        {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            if known.revision == registry.revision
                && let Some(planned) = known.plans.get(&key)
            {
                return Ok(planned.clone());
            }
        }
        let plan = Plan::new(registry.project(project)?, project, &key.0, full_feature_names)?;
        let windows = plan
            .views
            .iter()
            .map(|v| v.view.is_windowed().then(|| windows::spec_of(&v.view)).transpose())
            .collect::<Result<_>>()?;
        let planned = Arc::new(Planned { plan, windows });
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.revision < registry.revision || known.plans.len() >= MOST {
            known.plans.clear();
            known.forget_spellings();
            known.revision = registry.revision;
        }
        if known.revision == registry.revision {
            known.plans.insert(key, planned.clone());
        }
        Ok(planned)
    }

    /// The plan of features in this spelling, where it was [noted](Plans::note).
    pub(super) fn spelled(
        &self,
        registry: &Registry,
        spelling: &[u8],
        full_feature_names: bool,
    ) -> Option<Arc<Planned>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let spellings = &known.spellings[usize::from(full_feature_names)];
        spellings.get(spelling).filter(|_| known.revision == registry.revision).cloned()
    }

    /// Notes that features in this spelling have this plan. One that is too long is not noted.
    pub(super) fn note(&self, registry: &Registry, spelling: &[u8], full_feature_names: bool, planned: Arc<Planned>) {
        if spelling.len() > SPELLING {
            return;
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.revision != registry.revision {
            return;
        }
        if known.spelled + spelling.len() > SPELLINGS {
            known.forget_spellings();
        }
        if known.spellings[usize::from(full_feature_names)].insert(spelling.into(), planned).is_none() {
            known.spelled += spelling.len();
        }
    }
}
