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
            known.revision = registry.revision;
        }
        if known.revision == registry.revision {
            known.plans.insert(key, planned.clone());
        }
        Ok(planned)
    }
}
