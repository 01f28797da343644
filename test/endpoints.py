"""
Whether nodes of this process hear each other.

DDS tells a publisher and a subscription of each other one after the other, and a subscription
ignores what comes from a publisher that it does not know yet: both sides must be asked.
"""

from collections import Counter


def known_pairs(topic, *nodes):
    """Return how many pairs on a topic are known to publishers, and how many to subscriptions."""
    return (sum(publisher.get_subscription_count() for node in nodes
                for publisher in node.publishers if publisher.topic_name == topic),
            sum(subscription.get_publisher_count() for node in nodes
                for subscription in node.subscriptions if subscription.topic_name == topic))


def shared_topics(*nodes):
    """Return the topics that are both published and subscribed to, with the number of pairs."""
    offered = Counter(end.topic_name for node in nodes for end in node.publishers)
    wanted = Counter(end.topic_name for node in nodes for end in node.subscriptions)
    return {topic: offered[topic] * wanted[topic] for topic in offered.keys() & wanted.keys()}


def have_matched(*nodes):
    """Return whether each publisher knows each subscription of its topic, and the other way."""
    return all(known_pairs(topic, *nodes) == (pairs, pairs)
               for topic, pairs in shared_topics(*nodes).items())
