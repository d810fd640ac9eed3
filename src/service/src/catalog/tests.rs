//! The verbs over a registry store in memory.
