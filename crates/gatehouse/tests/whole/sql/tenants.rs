//! Whether a statement reaches tenants' rows through their tenant only: each place where a table of tenants is named is
//! looked at by itself, in the query that names it.
//!
//! Rows are bound if nothing passes their query's conditions but what has a parameter, or the tenant of rows that are
//! bound themselves, as its `tenant_id`. What binds stands beside other conditions with AND; of alternatives (OR), each
//! has to bind.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use sqlparser::ast::{
    BinaryOperator, ConflictTarget, Delete, Expr, FromTable, Insert, JoinConstraint, JoinOperator,
    ObjectName, OnConflictAction, OnInsert, Query, Select, SelectItem, SetExpr, Statement, TableFactor,
    TableObject, TableWithJoins, Update, UpdateTableFromKind, Value, Visit, Visitor,
};
use sqlparser::dialect::{Dialect, PostgreSqlDialect, SQLiteDialect};
use sqlparser::parser::Parser;

const TENANT: &str = "tenant_id";

/// Which text it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Engine {
    Postgres,
    Sqlite,
}

/// Every way in which `text` reaches rows of the `tables` without their tenant; none if it is bound throughout.
pub(super) fn gaps(text: &str, engine: Engine, tables: &BTreeSet<String>) -> Vec<String> {
    let dialect: &dyn Dialect = match engine {
        Engine::Postgres => &PostgreSqlDialect {},
        Engine::Sqlite => &SQLiteDialect {},
    };
    let statements = match Parser::parse_sql(dialect, &readable(text)) {
        Ok(statements) => statements,
        Err(error) => return vec![format!("it can't be read: {error}")],
    };
    let mut judge = Judge { tables, gaps: Vec::new() };
    for statement in &statements {
        judge.statement(statement, &Scope::default());
    }
    judge.gaps
}

/// `text` without what the parser does not know and what changes nothing here: the condition of a partial index after
/// `ON CONFLICT (…)`, and, of SQLite, MATERIALIZED.
fn readable(text: &str) -> String {
    let text = text.replace(" AS MATERIALIZED (", " AS (");
    let Some((before, after)) = text.split_once("ON CONFLICT (") else { return text };
    let Some((columns, rest)) = after.split_once(')') else { return text };
    match rest.split_once(" DO ") {
        Some((predicate, action)) if predicate.trim_start().starts_with("WHERE ") => {
            format!("{before}ON CONFLICT ({columns}) DO {action}")
        }
        _ => text,
    }
}

/// What the names of a query stand for.
#[derive(Clone, Debug, Default)]
struct Scope {
    /// Queries that were given a name (WITH): judged where they stand.
    named: BTreeSet<String>,
    /// Relations, of this query and those around it, whose tenant is settled.
    bound: BTreeSet<String>,
}

/// A relation of a query's FROM.
#[derive(Debug)]
struct Relation {
    /// What it is called in the query.
    alias: String,
    /// Whether it has rows of tenants that are not bound by themselves.
    is_of_tenants: bool,
    /// Whether a plain `tenant_id` can mean it.
    has_tenant: bool,
}

struct Judge<'a> {
    tables: &'a BTreeSet<String>,
    gaps: Vec<String>,
}

impl Judge<'_> {
    fn statement(&mut self, statement: &Statement, scope: &Scope) {
        match statement {
            Statement::Query(query) => self.query(query, scope),
            Statement::Insert(insert) => self.insert(insert, scope),
            Statement::Update(update) => self.update(update, scope),
            Statement::Delete(delete) => self.delete(delete, scope),
            other => self.gaps.push(format!("nobody judges statements such as {other}")),
        }
    }

    fn query(&mut self, query: &Query, scope: &Scope) {
        let mut scope = scope.clone();
        for named in query.with.iter().flat_map(|with| &with.cte_tables) {
            // One that is recursive names itself.
            let mut inner = scope.clone();
            inner.named.insert(named.alias.name.value.clone());
            self.query(&named.query, &inner);
            scope = Scope { named: inner.named, ..scope };
        }
        self.body(&query.body, &scope);
        for part in [
            query.order_by.as_ref().map(|by| by as &dyn Parts),
            query.limit_clause.as_ref().map(|by| by as _),
        ] {
            self.inner_queries(part.into_iter(), &scope);
        }
    }

    fn body(&mut self, body: &SetExpr, scope: &Scope) {
        match body {
            SetExpr::Select(select) => self.select(select, scope),
            SetExpr::Query(query) => self.query(query, scope),
            SetExpr::SetOperation { left, right, .. } => {
                self.body(left, scope);
                self.body(right, scope);
            }
            SetExpr::Values(values) => self.inner_queries([values as &dyn Parts].into_iter(), scope),
            SetExpr::Insert(statement) | SetExpr::Update(statement) | SetExpr::Delete(statement) => {
                self.statement(statement, scope);
            }
            other => self.gaps.push(format!("nobody judges queries such as {other}")),
        }
    }

    fn select(&mut self, select: &Select, scope: &Scope) {
        let (relations, mut conditions) = self.relations(&select.from, scope);
        conditions.extend(&select.selection);
        let scope = self.settle(&relations, &conditions, scope, "SELECT");
        self.inner_queries([select as &dyn Parts].into_iter(), &scope);
    }

    fn update(&mut self, update: &Update, scope: &Scope) {
        let from = match &update.from {
            Some(UpdateTableFromKind::BeforeSet(from) | UpdateTableFromKind::AfterSet(from)) => {
                from.as_slice()
            }
            None => &[],
        };
        let all: Vec<_> = std::iter::once(&update.table).chain(from).cloned().collect();
        let (relations, mut conditions) = self.relations(&all, scope);
        conditions.extend(&update.selection);
        let scope = self.settle(&relations, &conditions, scope, "UPDATE");
        if update.assignments.iter().any(|set| set.target.to_string().split('.').next_back() == Some(TENANT))
        {
            self.gaps.push("UPDATE gives rows to another tenant".to_owned());
        }
        self.inner_queries([update as &dyn Parts].into_iter(), &scope);
    }

    fn delete(&mut self, delete: &Delete, scope: &Scope) {
        let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = &delete.from;
        let all: Vec<_> = from.iter().chain(delete.using.iter().flatten()).cloned().collect();
        let (relations, mut conditions) = self.relations(&all, scope);
        conditions.extend(&delete.selection);
        let scope = self.settle(&relations, &conditions, scope, "DELETE");
        self.inner_queries([delete as &dyn Parts].into_iter(), &scope);
    }

    fn insert(&mut self, insert: &Insert, scope: &Scope) {
        if let Some(source) = &insert.source {
            self.query(source, scope);
        }
        let TableObject::TableName(name) = &insert.table else {
            return self.gaps.push(format!("nobody judges {insert}"));
        };
        if !self.is_of_tenants(name) {
            return;
        }
        let place = insert.columns.iter().position(|column| last(column) == TENANT);
        let is_given =
            place.zip(insert.source.as_deref()).is_some_and(|(place, source)| gives_tenant(source, place));
        if !is_given {
            self.gaps.push(format!("INSERT INTO {name} takes its {TENANT} from no parameter"));
        }
        if let Some(OnInsert::OnConflict(conflict)) = &insert.on
            && let OnConflictAction::DoUpdate(update) = &conflict.action
        {
            let is_own = matches!(&conflict.conflict_target, Some(ConflictTarget::Columns(columns))
                if columns.iter().any(|column| column.value == TENANT));
            if !is_own {
                self.gaps.push(format!("INSERT INTO {name} may update the row of another tenant"));
            }
            let mut scope = scope.clone();
            scope.bound.insert(last(name).to_owned());
            self.inner_queries([update as &dyn Parts].into_iter(), &scope);
        }
    }

    /// What a FROM names, and the conditions of its joins that hold for every row.
    fn relations<'b>(&mut self, from: &'b [TableWithJoins], scope: &Scope) -> (Vec<Relation>, Vec<&'b Expr>) {
        let (mut relations, mut conditions) = (Vec::new(), Vec::new());
        for table in from {
            self.relation(&table.relation, scope, &mut relations, &mut conditions);
            for join in &table.joins {
                self.relation(&join.relation, scope, &mut relations, &mut conditions);
                match &join.join_operator {
                    JoinOperator::Join(constraint)
                    | JoinOperator::Inner(constraint)
                    | JoinOperator::CrossJoin(constraint)
                    // Of the table on the right nothing comes but by the condition.
                    | JoinOperator::Left(constraint)
                    | JoinOperator::LeftOuter(constraint) => match constraint {
                        JoinConstraint::On(condition) => conditions.push(condition),
                        JoinConstraint::None => {}
                        other => self.gaps.push(format!("nobody judges joins such as {other:?}")),
                    },
                    other => self.gaps.push(format!("nobody judges joins such as {other:?}")),
                }
            }
        }
        (relations, conditions)
    }

    fn relation<'b>(
        &mut self,
        factor: &'b TableFactor,
        scope: &Scope,
        relations: &mut Vec<Relation>,
        conditions: &mut Vec<&'b Expr>,
    ) {
        match factor {
            TableFactor::Table { name, alias, .. } => {
                let is_named = scope.named.contains(last(name));
                let is_of_tenants = !is_named && self.is_of_tenants(name);
                let alias =
                    alias.as_ref().map_or_else(|| last(name).to_owned(), |alias| alias.name.value.clone());
                relations.push(Relation { alias, is_of_tenants, has_tenant: is_of_tenants || is_named });
            }
            // Its queries are judged with all others of the statement.
            TableFactor::Derived { alias, .. } => relations.push(Relation {
                alias: alias.as_ref().map(|alias| alias.name.value.clone()).unwrap_or_default(),
                is_of_tenants: false,
                has_tenant: true,
            }),
            TableFactor::NestedJoin { table_with_joins, .. } => {
                let (inner, found) = self.relations(std::slice::from_ref(&**table_with_joins), scope);
                relations.extend(inner);
                conditions.extend(found);
            }
            other => self.gaps.push(format!("nobody judges tables such as {other}")),
        }
    }

    /// Finds what `conditions` bind; the scope of what stands within.
    fn settle(&mut self, relations: &[Relation], conditions: &[&Expr], scope: &Scope, what: &str) -> Scope {
        let mut scope = scope.clone();
        for relation in relations {
            // A name within hides the same one around.
            scope.bound.remove(&relation.alias);
            if !relation.is_of_tenants && relation.has_tenant {
                scope.bound.insert(relation.alias.clone());
            }
        }
        loop {
            let next = relations.iter().find(|relation| {
                !scope.bound.contains(&relation.alias)
                    && conditions.iter().any(|condition| binds(condition, relation, relations, &scope))
            });
            match next {
                Some(relation) => scope.bound.insert(relation.alias.clone()),
                None => break,
            };
        }
        for relation in relations.iter().filter(|relation| relation.is_of_tenants) {
            if !scope.bound.contains(&relation.alias) {
                self.gaps.push(format!("{what} reaches {} of any tenant", relation.alias));
            }
        }
        scope
    }

    /// Judges the queries that stand within `parts`, but not those that stand within these: each judges its own.
    fn inner_queries<'b>(&mut self, parts: impl Iterator<Item = &'b dyn Parts>, scope: &Scope) {
        for part in parts {
            for query in part.queries() {
                self.query(&query, scope);
            }
        }
    }

    fn is_of_tenants(&self, name: &ObjectName) -> bool {
        self.tables.contains(last(name))
    }
}

/// Something with queries in it.
trait Parts {
    fn queries(&self) -> Vec<Query>;
}

impl<T: Visit> Parts for T {
    fn queries(&self) -> Vec<Query> {
        let mut outermost = Outermost { depth: 0, found: Vec::new() };
        let _ = self.visit(&mut outermost);
        outermost.found
    }
}

struct Outermost {
    depth: usize,
    found: Vec<Query>,
}

impl Visitor for Outermost {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if self.depth == 0 {
            self.found.push(query.clone());
        }
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }
}

/// Whether nothing passes `condition` but rows of `relation` whose tenant is settled.
fn binds(condition: &Expr, relation: &Relation, relations: &[Relation], scope: &Scope) -> bool {
    let binds = |condition: &Expr| binds(condition, relation, relations, scope);
    match condition {
        Expr::Nested(inner) => binds(inner),
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => binds(left) || binds(right),
        Expr::BinaryOp { left, op: BinaryOperator::Or, right } => binds(left) && binds(right),
        Expr::BinaryOp { left, op: BinaryOperator::Eq, right } => match (&**left, &**right) {
            // Rows are compared column by column.
            (Expr::Tuple(left), Expr::Tuple(right)) => {
                left.iter().zip(right).any(|(left, right)| equates(left, right, relation, relations, scope))
            }
            (left, right) => equates(left, right, relation, relations, scope),
        },
        Expr::InList { expr, list, negated: false } => {
            is_tenant_of(expr, relation, relations) && list.iter().all(is_parameter)
        }
        Expr::InSubquery { expr, subquery, negated: false } => {
            let columns = match &**expr {
                Expr::Tuple(columns) => columns.as_slice(),
                column => std::slice::from_ref(column),
            };
            let place = columns.iter().position(|column| is_tenant_of(column, relation, relations));
            place.is_some_and(|place| gives_tenant(subquery, place))
        }
        _ => false,
    }
}

/// Whether one side is the tenant of `relation` and the other one that is settled.
fn equates(left: &Expr, right: &Expr, relation: &Relation, relations: &[Relation], scope: &Scope) -> bool {
    let is_settled = |side: &Expr| {
        is_parameter(side)
            || matches!(side, Expr::CompoundIdentifier(parts)
                if matches!(parts.as_slice(), [of, column] if column.value == TENANT && scope.bound.contains(&of.value)))
    };
    is_tenant_of(left, relation, relations) && is_settled(right)
        || is_tenant_of(right, relation, relations) && is_settled(left)
}

/// Whether `expression` is the column `tenant_id` of `relation`.
fn is_tenant_of(expression: &Expr, relation: &Relation, relations: &[Relation]) -> bool {
    match expression {
        Expr::Identifier(column) => {
            let could_be = relations.iter().filter(|relation| relation.has_tenant).count();
            column.value == TENANT && relation.has_tenant && could_be == 1
        }
        Expr::CompoundIdentifier(parts) => {
            matches!(parts.as_slice(), [of, column] if of.value == relation.alias && column.value == TENANT)
        }
        _ => false,
    }
}

/// Whether the column at `place` of what `query` gives is a settled tenant: a parameter, or a `tenant_id` of rows that
/// are judged where the query is.
fn gives_tenant(query: &Query, place: usize) -> bool {
    fn gives(body: &SetExpr, place: usize) -> bool {
        match body {
            SetExpr::Values(values) => {
                values.rows.iter().all(|row| row.content.get(place).is_some_and(is_parameter))
            }
            SetExpr::Select(select) => match select.projection.get(place) {
                Some(SelectItem::UnnamedExpr(column) | SelectItem::ExprWithAlias { expr: column, .. }) => {
                    is_parameter(column)
                        || matches!(column, Expr::Identifier(name) if name.value == TENANT)
                        || matches!(column, Expr::CompoundIdentifier(parts)
                            if parts.last().is_some_and(|name| name.value == TENANT))
                }
                _ => false,
            },
            SetExpr::Query(query) => gives(&query.body, place),
            SetExpr::SetOperation { left, right, .. } => gives(left, place) && gives(right, place),
            _ => false,
        }
    }
    gives(&query.body, place)
}

fn is_parameter(expression: &Expr) -> bool {
    match expression {
        Expr::Value(value) => matches!(value.value, Value::Placeholder(_)),
        Expr::Cast { expr, .. } | Expr::Nested(expr) => is_parameter(expr),
        _ => false,
    }
}

fn last(name: &ObjectName) -> &str {
    name.0.last().and_then(|part| part.as_ident()).map_or("", |ident| ident.value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let tables = ["jobs", "keys", "events"].map(str::to_owned).into();
        let [postgres, sqlite] = [Engine::Postgres, Engine::Sqlite].map(|engine| gaps(text, engine, &tables));
        assert_eq!(postgres, sqlite, "{text}");
        postgres
    }

    #[test]
    fn what_is_bound_to_a_tenant_passes() {
        for text in [
            "SELECT id FROM jobs WHERE tenant_id = $1 AND (id = $2 OR $2 IS NULL)",
            "SELECT id FROM jobs WHERE $1 = tenant_id",
            "SELECT id FROM jobs AS j WHERE (j.tenant_id, j.id) = ($1, $2)",
            "SELECT id FROM jobs WHERE tenant_id IN ($1, $2)",
            "SELECT id FROM jobs WHERE (tenant_id = $1 AND id = $2) OR (tenant_id = $1 AND id = $3)",
            "SELECT j.id FROM jobs j JOIN events e ON e.tenant_id = j.tenant_id AND e.id = j.id WHERE j.tenant_id = $1",
            "SELECT j.id FROM jobs j JOIN people p ON p.id = j.person WHERE tenant_id = $1",
            "SELECT id FROM jobs j WHERE j.tenant_id = $1 AND EXISTS (SELECT 1 FROM events e WHERE e.tenant_id = j.tenant_id)",
            "SELECT id FROM jobs WHERE (tenant_id, id) IN (SELECT tenant_id, id FROM events WHERE tenant_id = $1)",
            "WITH mine AS MATERIALIZED (SELECT tenant_id, id FROM jobs WHERE tenant_id = $1) SELECT e.id FROM events e, mine \
             WHERE e.tenant_id = mine.tenant_id",
            "SELECT name FROM people WHERE id = $1",
            "UPDATE jobs SET state = 'x' WHERE tenant_id = $1 AND id = $2 RETURNING id",
            "UPDATE jobs SET n = (SELECT COUNT(*) FROM events WHERE tenant_id = $1) WHERE tenant_id = $1",
            "DELETE FROM jobs WHERE tenant_id = $1",
            "INSERT INTO jobs (tenant_id, id) VALUES ($1, $2), ($3, $4)",
            "INSERT INTO jobs (id, tenant_id) SELECT id, tenant_id FROM events WHERE tenant_id = $1",
            "INSERT INTO jobs (tenant_id, id) VALUES ($1, $2) ON CONFLICT (tenant_id, id) WHERE state <> 'x' DO NOTHING",
            "INSERT INTO jobs (tenant_id, id) VALUES ($1, $2) ON CONFLICT (tenant_id, id) DO UPDATE SET n = excluded.n",
        ] {
            assert_eq!(found(text), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn what_is_not_bound_is_found() {
        for (text, expected) in [
            // Each of these has `tenant_id = $1` or `(tenant_id, ` somewhere.
            ("SELECT tenant_id FROM jobs WHERE id = $1", "SELECT reaches jobs"),
            ("SELECT id FROM jobs WHERE tenant_id = $1 OR id = $2", "SELECT reaches jobs"),
            ("SELECT id FROM jobs WHERE NOT (tenant_id = $1)", "SELECT reaches jobs"),
            ("SELECT id FROM jobs WHERE tenant_id <> $1 AND id = $2", "SELECT reaches jobs"),
            ("SELECT id FROM jobs WHERE tenant_id = tenant_id", "SELECT reaches jobs"),
            ("SELECT id FROM jobs WHERE tenant_id NOT IN ($1)", "SELECT reaches jobs"),
            ("SELECT tenant_id = $1 FROM jobs", "SELECT reaches jobs"),
            ("SELECT id FROM jobs ORDER BY tenant_id = $1", "SELECT reaches jobs"),
            ("SELECT id FROM jobs GROUP BY id HAVING MAX(tenant_id) = $1", "SELECT reaches jobs"),
            ("SELECT CASE WHEN tenant_id = $1 THEN 1 END FROM jobs WHERE id = $2", "SELECT reaches jobs"),
            // Another's tenant.
            (
                "SELECT j.id FROM jobs j JOIN events e ON e.id = j.id WHERE j.tenant_id = $1",
                "SELECT reaches e of",
            ),
            (
                "SELECT j.id FROM jobs j JOIN events e ON e.id = j.id WHERE e.tenant_id = $1",
                "SELECT reaches j of",
            ),
            ("SELECT j.id FROM jobs j, events e WHERE j.tenant_id = e.tenant_id", "SELECT reaches j of"),
            ("SELECT j.id FROM jobs j, events e WHERE tenant_id = $1", "SELECT reaches j of"),
            (
                "SELECT id FROM jobs WHERE tenant_id = $1 AND EXISTS (SELECT 1 FROM events e WHERE e.id = $2)",
                "reaches e of",
            ),
            ("SELECT (SELECT COUNT(*) FROM events) FROM jobs WHERE tenant_id = $1", "SELECT reaches events"),
            (
                "SELECT id FROM jobs WHERE id IN (SELECT id FROM events WHERE tenant_id = $1)",
                "SELECT reaches jobs",
            ),
            (
                "SELECT id FROM jobs WHERE (tenant_id, id) IN (SELECT tenant_id, id FROM events)",
                "SELECT reaches events",
            ),
            (
                "SELECT id FROM jobs WHERE (tenant_id, id) IN (SELECT id, tenant_id FROM events WHERE tenant_id = $1)",
                "reaches jobs",
            ),
            (
                "SELECT id FROM (SELECT id FROM jobs WHERE id = $1) AS x WHERE x.tenant_id = $2",
                "SELECT reaches jobs",
            ),
            (
                "WITH all_of AS (SELECT id FROM jobs) SELECT id FROM all_of WHERE tenant_id = $1",
                "SELECT reaches jobs",
            ),
            ("SELECT id FROM jobs WHERE tenant_id = $1 UNION SELECT id FROM events", "SELECT reaches events"),
            ("UPDATE jobs SET state = $1 WHERE id = $2 RETURNING tenant_id", "UPDATE reaches jobs"),
            ("UPDATE jobs SET tenant_id = $1 WHERE tenant_id = $2", "gives rows to another tenant"),
            (
                "UPDATE jobs SET n = (SELECT COUNT(*) FROM events) WHERE tenant_id = $1",
                "SELECT reaches events",
            ),
            ("DELETE FROM jobs WHERE id = $1", "DELETE reaches jobs"),
            (
                "DELETE FROM jobs WHERE id IN (SELECT id FROM jobs WHERE tenant_id = $1)",
                "DELETE reaches jobs",
            ),
            ("INSERT INTO jobs (id) VALUES ($1)", "INSERT INTO jobs takes"),
            ("INSERT INTO jobs (tenant_id, id) VALUES ('t', $1)", "INSERT INTO jobs takes"),
            ("INSERT INTO jobs (tenant_id, id) SELECT tenant_id, id FROM events", "SELECT reaches events"),
            ("INSERT INTO jobs (tenant_id, id) SELECT person, id FROM people", "INSERT INTO jobs takes"),
            (
                "INSERT INTO jobs (tenant_id, id) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET n = 1",
                "row of another tenant",
            ),
            ("SELECT * FROM jobs NATURAL JOIN events WHERE tenant_id = $1", "nobody judges joins"),
            ("SELECT id FROM jobs WHERE tenant_id =", "it can't be read"),
            ("SELECT id FROM jobs WHERE tenant_id IN ($1, owner)", "SELECT reaches jobs"),
            (
                "SELECT id FROM jobs WHERE (tenant_id, id) NOT IN (SELECT tenant_id, id FROM events WHERE tenant_id = $1)",
                "SELECT reaches jobs",
            ),
            // The one within is not the one around.
            (
                "SELECT id FROM jobs j WHERE j.tenant_id = $1 AND EXISTS (SELECT 1 FROM events j WHERE j.id = $2)",
                "SELECT reaches j of",
            ),
            ("INSERT INTO jobs (tenant_id, id) VALUES ($1, $2), ('t', $3)", "INSERT INTO jobs takes"),
            (
                "INSERT INTO jobs (tenant_id, id) SELECT $1, $2 UNION SELECT person, id FROM people",
                "INSERT INTO jobs takes",
            ),
            (
                "DELETE FROM jobs WHERE tenant_id = $1 AND id IN (SELECT id FROM events)",
                "SELECT reaches events",
            ),
            ("TRUNCATE jobs", "nobody judges"),
        ] {
            let found = found(text);
            assert!(found.iter().any(|gap| gap.contains(expected)), "{text}: {found:?}");
        }
    }
}
