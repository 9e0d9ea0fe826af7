"""What the web tools are made of: requests to places that strangers chose, and pages that strangers wrote.

`fetching` makes the requests, to `addresses` that were checked; `pages` turns answers into blocks, HTML by way of
`converting`, in a process of its own; `searching` is the seam of search engines, each of which has its file.
"""
