//! Which component a path belongs to: exact routes, and `/...` for everything
//! below a path. The longest route wins.

/// Routes of the application.
#[derive(Clone, Debug, Default)]
pub struct Router {
    routes: Vec<Route>,
    components: Vec<String>,
}

#[derive(Clone, Debug)]
struct Route {
    /// Without `/...`.
    base: String,
    below: bool,
    component: usize,
}

/// Where a path leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routed {
    /// Index into [`Router::components`].
    pub component: usize,
}

/// Served by the host itself.
const RESERVED: &str = "/api/jobs";

impl Router {
    /// Adds a route, or says why it cannot be.
    pub fn add(&mut self, route: &str, component: &str) -> Result<(), String> {
        if !route.starts_with('/') {
            return Err(format!("route `{route}` does not begin with `/`"));
        }
        let (base, below) = match route.strip_suffix("/...") {
            Some(base) => (base, true),
            None => (route, false),
        };
        if base.contains(':') || base.contains('*') {
            return Err(format!(
                "route `{route}` has a parameter or a `*`; this host knows exact routes and `/...` at the end"
            ));
        }
        if base == RESERVED || base.starts_with("/api/jobs/") {
            return Err(format!(
                "route `{route}` is the host's own: it serves the pages of jobs there"
            ));
        }
        if self
            .routes
            .iter()
            .any(|other| other.base == base && other.below == below)
        {
            return Err(format!("route `{route}` is given twice"));
        }
        let component = match self.components.iter().position(|known| known == component) {
            Some(known) => known,
            None => {
                self.components.push(component.to_owned());
                self.components.len() - 1
            }
        };
        self.routes.push(Route {
            base: base.to_owned(),
            below,
            component,
        });
        // Longest first, an exact route before one for everything below it.
        self.routes
            .sort_by_key(|route| (std::cmp::Reverse(route.base.len()), route.below));
        Ok(())
    }

    /// The components with routes.
    pub fn components(&self) -> &[String] {
        &self.components
    }

    /// Where this path leads, if anywhere.
    pub fn route(&self, path: &str) -> Option<Routed> {
        let found = self
            .routes
            .iter()
            .find(|route| match path.strip_prefix(&route.base) {
                Some("") => true,
                Some(rest) => route.below && rest.starts_with('/'),
                None => false,
            })?;
        Some(Routed {
            component: found.component,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_route_wins() {
        let mut router = Router::default();
        for (route, component) in [
            ("/...", "all"),
            ("/api/...", "api"),
            ("/api/IngestJob", "ingest"),
        ] {
            router.add(route, component).unwrap();
        }
        let led_to = |path: &str| {
            router
                .route(path)
                .map(|to| router.components()[to.component].as_str())
        };
        assert_eq!(led_to("/api/IngestJob"), Some("ingest"));
        assert_eq!(led_to("/api/other"), Some("api"));
        assert_eq!(led_to("/api"), Some("api"));
        assert_eq!(led_to("/apix"), Some("all"));
    }

    #[test]
    fn a_path_without_a_route_leads_nowhere() {
        let mut router = Router::default();
        router.add("/api/IngestJob", "ingest").unwrap();
        assert_eq!(router.route("/api/IngestJob/x"), None);
        assert_eq!(router.route("/"), None);
    }

    #[test]
    fn a_route_that_cannot_be_is_refused() {
        let mut router = Router::default();
        router.add("/a", "x").unwrap();
        for route in [
            "a",
            "/a",
            "/b/:id",
            "/api/jobs",
            "/api/jobs/...",
            "/api/jobs/x",
        ] {
            router.add(route, "y").unwrap_err();
        }
    }
}
