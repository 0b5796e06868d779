//! [`TenantPath`]: a template that finds the tenant in a request's path.
//!
//! Pure. The layer refuses a request whose path does not match.

use std::str::FromStr;

use percent_encoding::percent_decode_str;

use crate::core::invalid::{Invalid, Problem};
use crate::core::tenant::TenantId;

/// A template for the start of a path, with the tenant in braces: `/v1/projects/{project}`.
///
/// Several segments in braces are joined with `/`: with `/orgs/{org}/projects/{project}`, the path
/// `/orgs/acme/projects/web/keys` names the tenant `acme/web`. A last segment `{*rest}` takes all remaining
/// segments. The path may continue after the template. Escapes such as `%2F` are decoded once, as routers do.
///
/// # Examples
///
/// ```
/// use keyward::web::TenantPath;
///
/// let path: TenantPath = "/v1/projects/{project}".parse()?;
/// assert_eq!(path.tenant("/v1/projects/acme/reports"), Some("acme".parse()?));
/// assert_eq!(path.tenant("/v2/projects/acme"), None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TenantPath(Vec<TemplateSegment>);

#[derive(Clone, Debug, Eq, PartialEq)]
enum TemplateSegment {
    Literal(String),
    Part,
    Rest,
}

impl TenantPath {
    /// Returns the tenant that `path` names. `None` if `path` does not match the template, or if its parts do
    /// not form a valid tenant id.
    #[must_use]
    pub fn tenant(&self, path: &str) -> Option<TenantId> {
        let mut segments = path.strip_prefix('/')?.split('/');
        let mut tenant = String::new();
        let add = |tenant: &mut String, segment: &str| {
            if !tenant.is_empty() {
                tenant.push('/');
            }
            let decoded = percent_decode_str(segment).decode_utf8().ok()?;
            tenant.push_str(&decoded);
            (!decoded.is_empty()).then_some(())
        };
        for wanted in &self.0 {
            match wanted {
                TemplateSegment::Literal(literal) if *literal == *segments.next()? => {}
                TemplateSegment::Literal(_) => return None,
                TemplateSegment::Part => add(&mut tenant, segments.next()?)?,
                TemplateSegment::Rest => {
                    segments.try_for_each(|segment| add(&mut tenant, segment))?
                }
            }
            if *wanted == TemplateSegment::Rest {
                break;
            }
        }
        TenantId::new(tenant).ok()
    }
}

impl FromStr for TenantPath {
    type Err = Invalid;

    fn from_str(template: &str) -> Result<Self, Invalid> {
        let expected = "a path with a tenant in braces, such as /v1/projects/{project}";
        let invalid = || Invalid::new("path of the tenant", Problem::Format { expected });
        let parse = |segment: &str| {
            let named = segment
                .strip_prefix('{')
                .and_then(|rest| rest.strip_suffix('}'));
            match named {
                Some(name) if is_name(name) => Ok(TemplateSegment::Part),
                Some(name) if name.strip_prefix('*').is_some_and(is_name) => {
                    Ok(TemplateSegment::Rest)
                }
                None if !segment.is_empty() && !segment.contains(['{', '}']) => {
                    Ok(TemplateSegment::Literal(segment.to_owned()))
                }
                _ => Err(invalid()),
            }
        };
        let segments = template.strip_prefix('/').ok_or_else(invalid)?.split('/');
        let segments = segments.map(parse).collect::<Result<Vec<_>, _>>()?;
        let rest = segments
            .iter()
            .position(|segment| *segment == TemplateSegment::Rest);
        let names_one = segments
            .iter()
            .any(|segment| matches!(segment, TemplateSegment::Part | TemplateSegment::Rest));
        if !names_one || rest.is_some_and(|rest| rest + 1 != segments.len()) {
            return Err(invalid());
        }
        Ok(Self(segments))
    }
}

fn is_name(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !name.is_empty() && name.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tenant(template: &str, path: &str) -> Option<String> {
        let template: TenantPath = template.parse().unwrap();
        template.tenant(path).map(|tenant| tenant.to_string())
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn the_tenant_is_what_stands_in_its_place() {
        assert_eq!(tenant("/{tenant}", "/acme"), some("acme"));
        assert_eq!(tenant("/v1/{tenant}", "/v1/acme/reports/7"), some("acme"));
        let projects = "/orgs/{org}/projects/{project}";
        assert_eq!(
            tenant(projects, "/orgs/acme/projects/web"),
            some("acme/web")
        );
        assert_eq!(tenant("/t/{*path}", "/t/acme/web/eu"), some("acme/web/eu"));
        assert_eq!(tenant("/t/{tenant}", "/t/acme%2Fweb"), some("acme/web"));
        assert_eq!(tenant("/t/{tenant}", "/t/%61cme"), some("acme"));
    }

    #[test]
    fn a_path_of_another_form_names_none() {
        for path in [
            "/v1/projects",
            "/v1/projects/",
            "/v1/projects//acme",
            "//v1/projects/acme",
            "/V1/projects/acme",
            "/v1/project/acme",
            "/v1/projectsx/acme",
            "v1/projects/acme",
            "/v1/projects/a%20b",
            "/v1/projects/%ff",
            "/v1/projects/%2F",
            "/v1/projects/acme%2F",
            "*",
            "",
        ] {
            assert_eq!(tenant("/v1/projects/{project}", path), None, "{path:?}");
        }
        assert_eq!(tenant("/t/{*path}", "/t"), None);
        assert_eq!(tenant("/t/{*path}", "/t/acme/"), None);
        assert_eq!(tenant("/{a}/{b}", "/acme"), None);
    }

    #[test]
    fn templates_that_name_no_tenant_are_refused() {
        for template in [
            "", "/", "/v1", "{a}", "/{}", "/{a", "/a}", "/{a}{b}", "/x{a}", "/{*a}/b", "/{a}/",
            "/{*}", "/{a b}", "//{a}",
        ] {
            assert!(template.parse::<TenantPath>().is_err(), "{template:?}");
        }
    }

    proptest! {
        #[test]
        fn every_tenant_is_read_back_from_a_path_that_names_it(
            segments in prop::collection::vec("[A-Za-z0-9_.-]{1,8}", 1..4),
            escaped in any::<bool>(),
            more in "(/[a-z]{0,3}){0,2}",
        ) {
            // A tenant id cannot contain the segments `.` and `..`, neither plain nor percent-encoded.
            let named = segments.iter().all(|segment| segment != "." && segment != "..");
            let joined = segments.join("/");
            let escape = |text: &str| {
                let escape = |byte: u8| if escaped { format!("%{byte:02x}") } else { char::from(byte).into() };
                text.bytes().map(escape).collect::<String>()
            };
            let path: Vec<_> = segments.iter().map(|segment| escape(segment)).collect();
            let template: Vec<_> = (0..segments.len()).map(|n| format!("{{s{n}}}")).collect();
            let template = format!("/t/{}", template.join("/"));
            let path = format!("/t/{}{more}", path.join("/"));
            prop_assert_eq!(tenant(&template, &path), named.then_some(joined));
        }

        #[test]
        fn no_path_is_too_strange(path in ".{0,40}", template in "[/{}a*]{0,12}") {
            if let Ok(template) = template.parse::<TenantPath>() {
                let _ = template.tenant(&path);
            }
        }
    }
}
