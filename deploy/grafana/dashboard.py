#!/usr/bin/env python3
"""Writes headwater.json, the Grafana dashboard, beside this file: python3 deploy/grafana/dashboard.py

A panel is a line here and forty lines of JSON there; `make monitoring` checks that the two agree, that each metric exists
with its labels, and that a real Prometheus answers each query.
"""

import json
import pathlib

HERE = pathlib.Path(__file__).parent
OUTPUT = HERE / "headwater.json"

# Both variables take several values.
OF = 'job=~"$job", instance=~"$instance"'
RATE = "[$__rate_interval]"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def metric(name, *matchers):
    return f"headwater_{name}{{{', '.join([OF, *matchers])}}}"


def rate(name, *matchers):
    return f"rate({metric(name, *matchers)}{RATE})"


def total(expression, *by):
    return f"sum by ({', '.join(by)}) ({expression})" if by else f"sum({expression})"


def quantile(share, name, *by):
    return f"histogram_quantile({share}, {total(rate(name + '_bucket'), *by, 'le')})"


def since(name, *by):
    """Events within the range that the dashboard shows."""
    return total(f"increase({metric(name)}[$__range])", *by)


# A counter with labels appears with its first event: no series means none.
def or_zero(expression):
    return f"{expression} or vector(0)"


class Panels:
    """Panels from left to right and top to bottom, on Grafana's grid of 24 columns."""

    def __init__(self):
        self.panels, self.x, self.y, self.height = [], 0, 0, 0

    def row(self, title):
        self.wrap()
        self.panels.append(
            {"id": len(self.panels) + 1, "type": "row", "title": title, "collapsed": False, "panels": [],
             "gridPos": {"x": 0, "y": self.y, "w": 24, "h": 1}}
        )
        self.y += 1

    def wrap(self):
        self.y, self.x, self.height = self.y + self.height, 0, 0

    def add(self, kind, title, description, targets, *, unit, width, height, options, custom=None, steps=None, mappings=None,
            decimals=None):
        if self.x + width > 24:
            self.wrap()
        defaults = {
            "unit": unit,
            "mappings": mappings or [],
            "color": {"mode": "thresholds" if steps else "palette-classic"},
            "thresholds": {"mode": "absolute", "steps": [
                {"color": color, "value": value} for value, color in steps or [(None, "green")]]},
        }
        if decimals is not None:
            defaults["decimals"] = decimals
        if custom:
            defaults["custom"] = custom
        self.panels.append({
            "id": len(self.panels) + 1,
            "type": kind,
            "title": title,
            "description": description,
            "datasource": SOURCE,
            "gridPos": {"x": self.x, "y": self.y, "w": width, "h": height},
            "targets": [
                {"refId": chr(ord("A") + at), "datasource": SOURCE, "expr": expr, "legendFormat": legend, "range": True,
                 "editorMode": "code"}
                for at, (expr, legend) in enumerate(targets)
            ],
            "fieldConfig": {"defaults": defaults, "overrides": []},
            "options": options,
        })
        self.x, self.height = self.x + width, max(self.height, height)

    def stat(self, title, description, expr, *, unit="short", steps=None, width=4, mappings=None, decimals=None, calc="lastNotNull"):
        options = {
            "reduceOptions": {"calcs": [calc], "fields": "", "values": False},
            "colorMode": "value", "graphMode": "area", "justifyMode": "auto", "textMode": "auto", "orientation": "auto",
        }
        self.add("stat", title, description, [(expr, "")], unit=unit, width=width, height=4, options=options, steps=steps,
                 mappings=mappings, decimals=decimals)

    def graph(self, title, description, *targets, unit="short", width=12, stacked=False):
        options = {
            "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"], "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
        custom = {
            "drawStyle": "line", "lineWidth": 1, "fillOpacity": 20 if stacked else 5, "showPoints": "never",
            "stacking": {"mode": "normal" if stacked else "none", "group": "A"}, "axisSoftMin": 0,
        }
        self.add("timeseries", title, description, targets, unit=unit, width=width, height=8, options=options, custom=custom)


BAD_ABOVE_ZERO = [(None, "green"), (1, "red")]


def panels():
    p = Panels()

    p.row("Overview")
    p.stat("Instances", "Instances that Prometheus reaches.", 'sum(up{job=~"$job", instance=~"$instance"})',
           steps=[(None, "red"), (1, "green")])
    p.stat("Clients", "Open WebSocket connections.", total(metric("clients")))
    p.stat("Subscriptions", "Open subscriptions of all kinds.", total(metric("subscriptions")))
    p.stat("Head", "Number of the newest block.", f"max({metric('head_number')})", unit="none", decimals=0)
    p.stat("Age of the head", "Time since the newest block arrived, at the instance that is worst off.",
           f"max({metric('head_age_seconds')})", unit="s", steps=[(None, "green"), (30, "orange"), (60, "red")])
    p.stat("Nodes connected", "Connected nodes, at the instance with fewest.",
           f"min(sum by (job, instance) ({metric('upstream_up')}))", steps=[(None, "red"), (1, "green")])
    p.stat("Events delivered", "Notifications written to sockets, per second.", total(rate("deliveries_total")), unit="cps")
    p.stat("Requests", "Requests of clients, per second; each item of a batch counts.", total(rate("requests_total")), unit="reqps")
    p.stat("Delivery, 99 %", "From the node's message to the write to the last socket of a group of clients.",
           quantile(0.99, "delivery_latency_seconds"), unit="s", steps=[(None, "green"), (0.25, "orange"), (1, "red")])
    p.stat("Losses of continuity", "Events that were lost upstream and could not be repaired, within the range shown; the clients "
           "concerned were closed with 1012.", or_zero(since("continuity_lost_total")), steps=BAD_ABOVE_ZERO)
    p.stat("Slow clients closed", "Connections closed because the client did not read, within the range shown.",
           or_zero(total('increase(' + metric('closes_total', 'reason=~"slow_consumer|longest_queue|write_deadline|over_budget"')
                         + '[$__range])')), steps=[(None, "green"), (1, "orange")])
    p.stat("Panics", "Bugs in headwater, each of which ended one session or call, within the range shown.",
           or_zero(since("panics_total")), steps=BAD_ABOVE_ZERO)

    p.row("Chain")
    p.graph("Head", "Number of the newest block, by instance: lines that drift apart are instances whose nodes disagree.",
            (metric("head_number"), "{{instance}}"), unit="none")
    p.graph("Age of the head", "A saw-tooth of one block time; a line that climbs is a chain or node that stands still.",
            (metric("head_age_seconds"), "{{instance}}"), unit="s")
    p.graph("Reorgs", "Reorgs, and blocks that they dropped, per minute.",
            (f"60 * {total(rate('reorgs_total'), 'instance')}", "reorgs {{instance}}"),
            (f"60 * {total(rate('reorged_blocks_total'), 'instance')}", "blocks {{instance}}"), width=8)
    p.graph("Backfilled blocks", "Blocks fetched per minute because no node announced them.",
            (f"60 * {total(rate('backfilled_blocks_total'), 'instance')}", "{{instance}}"), width=8)
    p.graph("Waiting for contents", "Time for which subscribers have waited for logs, transactions or receipts of a block.",
            (f"max by (instance, kind) ({metric('contents_awaited_seconds')})", "{{kind}} {{instance}}"), unit="s", width=8)
    p.graph("Events held back", "Events that wait on their connection for contents of an earlier block.",
            (metric("early_events"), "{{instance}}"), width=8)
    p.graph("Answers about logs that were not accepted", "Answers about a block's logs that failed or contradicted the block, by reason, "
            "per minute. headwater asks again.", (f"60 * {total(rate('log_retries_total'), 'reason')}", "{{reason}}"), width=8)
    p.graph("Blocks with a wrong bloom", "Blocks whose logs were accepted although the header's logsBloom differs, per minute.",
            (f"60 * {total(rate('wrong_blooms_total'), 'reason')}", "{{reason}}"), width=8)

    p.row("Upstreams")
    p.graph("Active", "The node that each instance follows.",
            (f"max by (instance, upstream) ({metric('upstream_active')})", "{{upstream}} of {{instance}}"), unit="bool_yes_no", width=8)
    p.graph("Connected", "Nodes that are connected.",
            (f"min by (instance, upstream) ({metric('upstream_up')})", "{{upstream}} of {{instance}}"), unit="bool_yes_no", width=8)
    p.graph("Lag", "Time since another node first reported the oldest block that this node has not reached.",
            (f"max by (instance, upstream) ({metric('upstream_lag_seconds')})", "{{upstream}} of {{instance}}"), unit="s", width=8)
    p.graph("Connections made", "Connections made to a node within ten minutes: more than none is a node that comes and goes.",
            (f"sum by (instance, upstream) (delta({metric('upstream_connects')}[10m]))", "{{upstream}} of {{instance}}"), width=8)
    p.graph("Failovers", "Failovers and failbacks within ten minutes, by reason.",
            (f"sum by (instance, reason) (increase({metric('failovers_total')}[10m]))", "{{reason}} {{instance}}"), width=8)
    p.graph("Time of a failover", "From the last message of the previous node until another was active; half and 99 % of the failovers.",
            (f"histogram_quantile(0.5, sum by (le) (increase({metric('failover_seconds_bucket')}[$__range])))", "50 %"),
            (f"histogram_quantile(0.99, sum by (le) (increase({metric('failover_seconds_bucket')}[$__range])))", "99 %"), unit="s", width=8)
    p.graph("Calls to nodes", "Calls forwarded to a node, by outcome.",
            (total(rate("forwarded_calls_total"), "outcome"), "{{outcome}}"), unit="reqps", stacked=True)
    p.graph("Calls sent again", "Calls sent a second time, by reason: the connection was lost, the node throttled, could not answer, or was slow.",
            (total(rate("rerouted_calls_total"), "reason"), "{{reason}}"), unit="reqps")

    p.row("Clients")
    p.graph("Clients", "Open WebSocket connections.", (metric("clients"), "{{instance}}"), width=8, stacked=True)
    p.graph("New connections", "WebSocket clients accepted, per second.", (rate("connections_total"), "{{instance}}"), unit="cps", width=8)
    p.graph("Closed connections", "Closed connections by reason (docs/operations.md, close codes).",
            (total(rate("closes_total"), "reason"), "{{reason}}"), unit="cps", width=8, stacked=True)
    p.graph("Subscriptions", "Open subscriptions by kind.", (total(metric("subscriptions"), "kind"), "{{kind}}"), width=8, stacked=True)
    p.graph("Filters and accounts", "Distinct filters of logs; clients (keys, tokens, addresses) with an account in memory.",
            (metric("log_filters"), "filters {{instance}}"), (metric("accounts"), "accounts {{instance}}"), width=8)
    p.graph("Resumed subscriptions", "Subscriptions that asked for the past: served from memory or the node, or refused (too_old, unknown, "
            "pruned), per minute.", (f"60 * {total(rate('resumed_total'), 'reason')}", "{{reason}}"), width=8)
    p.graph("Sessions", "Sessions in memory, and the subscriptions whose positions are kept.", (metric("sessions"), "sessions {{instance}}"),
            (metric("session_positions"), "positions {{instance}}"), width=8)
    p.graph("Returning sessions", "Positions from which subscriptions went on (resumed), or that were lost: their clients were closed with 1012; "
            "per minute.", (f"60 * {total(rate('session_claims_total'), 'outcome')}", "{{outcome}}"), width=8)

    p.row("Deliveries and latency")
    p.graph("Events delivered", "Notifications written to sockets, by kind.",
            (total(rate("deliveries_total"), "kind"), "{{kind}}"), unit="cps", stacked=True)
    p.graph("Time of a delivery", "From the node's message to the write to the last socket of a group of clients.",
            *((quantile(share, "delivery_latency_seconds"), name) for share, name in
              ((0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"))), unit="s")
    p.graph("Time of a delivery, by instance", "99 % of the deliveries.",
            (quantile(0.99, "delivery_latency_seconds", "instance"), "{{instance}}"), unit="s", width=8)
    p.graph("Bytes", "Bytes of WebSocket clients, and bytes that compression saved.",
            (total(rate("sent_bytes_total")), "sent"), (total(rate("received_bytes_total")), "received"),
            (total(rate("saved_bytes_total")), "saved"), unit="Bps", width=8)
    p.graph("Compressed HTTP answers", "Bytes of HTTP answers that were compressed, before and after.",
            (total(rate("packed_answer_bytes_total"), "coding, stage"), "{{coding}} {{stage}}"), unit="Bps", width=8)
    p.graph("Time of a call", "Duration of calls forwarded to nodes.",
            *((quantile(share, "forward_seconds"), name) for share, name in ((0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"))),
            unit="s", width=8)

    p.row("Calls and caches")
    p.graph("Requests", "Requests of clients by outcome.", (total(rate("requests_total"), "outcome"), "{{outcome}}"), unit="reqps",
            stacked=True)
    p.graph("Source of answers", "Calls that can be answered from memory, by source: memory (cached), shared (an equal call was under way), "
            "history (blocks in memory), node.", (total(rate("answered_calls_total"), "by"), "{{by}}"), unit="reqps", stacked=True)
    p.graph("Answered without the node", "Share of calls answered from memory, by method.",
            (total(rate("answered_calls_total", 'by!="node"'), "method") + " / " + total(rate("answered_calls_total"), "method"),
             "{{method}}"), unit="percentunit", width=8)
    p.graph("Calls to the node by method", "Calls that memory could have answered and did not.",
            (f"topk(10, {total(rate('answered_calls_total', 'by=' + chr(34) + 'node' + chr(34)), 'method')})", "{{method}}"),
            unit="reqps", width=8)
    p.graph("Cache", "Bytes of cached answers.", (metric("cache_bytes"), "{{instance}}"), unit="bytes", width=4)
    p.graph("Cached answers", "Number of cached answers.", (metric("cache_entries"), "{{instance}}"), width=4)

    p.row("Limits and memory")
    p.graph("Refused", "Connections and requests refused, by reason (docs/operations.md, metrics).",
            (total(rate("refused_total"), "reason"), "{{reason}}"), unit="reqps")
    p.graph("Memory by budget", "Bytes in use of each budget in [memory].",
            (total(metric("memory_bytes"), "budget"), "{{budget}}"), unit="bytes")
    p.graph("Queued for clients", "Bytes in the queues of clients that read more slowly than events arrive; the bound is "
            "delivery.max_total_queue_bytes.", (metric("queue_bytes"), "{{instance}}"), unit="bytes", width=8)
    p.graph("Best-effort events dropped", "Pending transactions and passed-through events dropped under pressure, by place.",
            (total(rate("pending_dropped_total"), "reason"), "{{reason}}"), unit="cps", width=8)
    p.graph("Events of unknown subscriptions", "Events of subscriptions at a node that headwater did not make; it ends each.",
            (total(rate("upstream_unknown_subscription_events_total"), "instance"), "{{instance}}"), unit="cps", width=8)

    p.row("Webhooks")
    p.graph("Age of the oldest batch", "Time since the batch under way was made, by webhook: a line that climbs is a receiver that fails.",
            (metric("webhook_lag_seconds"), "{{webhook}} {{instance}}"), unit="s", width=6)
    p.graph("Events accepted", "Events that receivers have accepted.",
            (total(rate("webhook_events_total"), "webhook"), "{{webhook}}"), unit="cps", width=6)
    p.graph("Requests to receivers", "By outcome: accepted, failed (sent again), gone (the receiver answered 410).",
            (total(rate("webhook_attempts_total"), "webhook, outcome"), "{{webhook}} {{outcome}}"), unit="reqps", width=6)
    p.graph("Given up, gaps, disabled", "Events among the dead letters and gaps within an hour, and webhooks that are disabled.",
            (f"sum by (webhook) (increase({metric('webhook_dead_events_total')}[1h]))", "dead {{webhook}}"),
            (f"sum by (webhook) (increase({metric('webhook_gaps_total')}[1h]))", "gaps {{webhook}}"),
            (f"max by (webhook) ({metric('webhook_disabled')})", "disabled {{webhook}}"), width=6)

    p.row("Fleet")
    p.graph("Difference of heads", "Blocks between the instance that is ahead and the one that is behind.",
            (f"max by (job) ({metric('head_number')}) - min by (job) ({metric('head_number')})", "{{job}}"), unit="none", width=6)
    p.graph("Share of clients", "Clients of each instance, as a share of all.",
            (f"sum by (job, instance) ({metric('clients')}) / on (job) group_left sum by (job) ({metric('clients')})", "{{instance}}"),
            unit="percentunit", width=6)
    p.graph("Reloads", "Reloads of the configuration within ten minutes, by outcome.",
            (f"sum by (instance, outcome) (increase({metric('config_reloads_total')}[10m]))", "{{outcome}} {{instance}}"), width=6)
    p.graph("Restarts", "Restarts within an hour.", (f"resets({metric('connections_total')}[1h])", "{{instance}}"), width=6)
    p.graph("Members", "Other headwaters that share quotas with the instance, and instances that reach none although they should.",
            (metric("fleet_members"), "members {{instance}}"), (metric("fleet_alone"), "alone {{instance}}"), width=8)
    p.graph("Reports", "Reports of use between edges and roots, by outcome.",
            (total(rate("fleet_reports_total"), "instance", "outcome"), "{{outcome}} {{instance}}"), unit="cps", width=8)
    p.graph("Use elsewhere", "Units of requests that clients used at other headwaters, and accounts for which there was no room.",
            (total(rate("fleet_foreign_units_total"), "instance"), "units {{instance}}"),
            (total(rate("fleet_dropped_accounts_total"), "instance"), "no room {{instance}}"), unit="cps", width=8)
    p.graph("Records lost", "Lines missing in the access log, and spans that were not exported, per second.",
            (f"sum by (instance, reason) ({rate('access_log_dropped_total')})", "lines {{reason}} {{instance}}"),
            (f"sum by (instance, reason) ({rate('spans_dropped_total')})", "spans {{reason}} {{instance}}"), width=24)
    return p.panels


def variable(name, label, query):
    return {
        "name": name, "label": label, "type": "query", "datasource": SOURCE, "query": {"query": query, "refId": name}, "refresh": 2,
        "multi": True, "includeAll": True, "allValue": ".*", "sort": 1, "current": {"text": "All", "value": "$__all"},
    }


def dashboard():
    return {
        "title": "headwater",
        "uid": "headwater",
        "description": "Ethereum JSON-RPC subscription proxy: streams, nodes, clients, calls. Alerts and their remedies: docs/operations.md",
        "tags": ["headwater", "ethereum"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "",
        "annotations": {"list": [{
            "name": "Alerts", "enable": True, "iconColor": "red", "datasource": SOURCE, "titleFormat": "{{alertname}}",
            "expr": 'ALERTS{alertname=~"Headwater.*", alertstate="firing"}',
        }]},
        "links": [{"title": "Operations", "type": "link", "icon": "doc", "targetBlank": True,
                   "url": "https://github.com/headwater-rpc/headwater/blob/main/docs/operations.md"}],
        "templating": {"list": [
            {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "current": {}, "refresh": 1},
            variable("job", "Job", "label_values(headwater_clients, job)"),
            variable("instance", "Instance", 'label_values(headwater_clients{job=~"$job"}, instance)'),
        ]},
        "panels": panels(),
    }


def text():
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(text())
